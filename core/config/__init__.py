"""The one schema of `pipeline.yaml` and its siblings under `configs/`.

Every field has a reader. A stage's cache key holds exactly the fields that the stage declares, so
changing one redoes that stage and those after it; `runtime`, `compute`, `tracking` and `gate` never
redo work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, model_validator

from core.benchmarks import BENCHMARKS, ENDPOINT, BenchmarkChoice
from core.config.compute import Compute, Resources, Runtime
from core.config.data import Endpoint, Model, ParquetData, Questions, Serve, ShapesData
from core.config.evaluation import Evaluation, Gate, Tracking
from core.config.sampling import IMAGE_SAMPLER, Pairing, PairRule, Sampling, Scoring
from core.config.training import (
    BestOf,
    Branch,
    GroupDpo,
    GroupDpoBranch,
    GroupPolicy,
    InternalGap,
    Lora,
    Objective,
    PairDpo,
    Preference,
    Reconstruction,
    Redrawn,
    Training,
)
from core.settings import Section, load_settings

__all__ = [
    "IMAGE_SAMPLER",
    "BestOf",
    "Branch",
    "Compute",
    "Config",
    "Endpoint",
    "Evaluation",
    "Gate",
    "GroupDpo",
    "GroupDpoBranch",
    "GroupPolicy",
    "InternalGap",
    "Lora",
    "Objective",
    "PairDpo",
    "PairRule",
    "Pairing",
    "Preference",
    "Questions",
    "Reconstruction",
    "Redrawn",
    "Resources",
    "Runtime",
    "Scoring",
    "Serve",
    "Tracking",
    "Training",
    "load_config",
]

SHAPES_MODEL = "hermesflow-shapes"


class Config(Section):
    """A whole run."""

    seed: int = Field(ge=0, lt=2**31, description="seed of sampling and training")
    iterations: int = Field(ge=0, le=100, description="self-play iterations")
    store: str = Field(min_length=1, description="artifact store: folder or s3://bucket/prefix")
    model: Model
    data: ShapesData | ParquetData = Field(discriminator="source")
    questions: Questions | None = Field(
        description="questions to be written for the pool and the test set; null: theirs are enough"
    )
    sampling: Sampling
    scoring: Scoring
    pairing: Pairing
    training: Training
    evaluation: Evaluation
    benchmarks: list[BenchmarkChoice] = Field(
        description="what every checkpoint is scored by besides, and must not get worse at"
    )
    gate: Gate
    tracking: Tracking
    runtime: Runtime
    compute: Compute

    @model_validator(mode="after")
    def _fields_fit(self) -> Config:
        oracles = (self.scoring.judge, "scoring.judge"), (self.evaluation.judge, "evaluation.judge")
        for judge, field in oracles:
            if judge == "oracle" and self.data.source != "shapes":
                way_out = "self" if field.startswith("scoring") else "reader"
                raise ValueError(
                    f"{field} = 'oracle' reads shapes only, but data.source = "
                    f"{self.data.source!r}; set {field}: {way_out}"
                )
        if self.evaluation.judge == "endpoint" and self.evaluation.endpoint is None:
            raise ValueError(
                "evaluation.judge = 'endpoint', but evaluation.endpoint is null; say there which "
                "model answers, or set evaluation.judge: reader"
            )
        self._check_benchmarks()
        self._check_objective()
        if self.data.source != "shapes" and self.tracking.registered_model == SHAPES_MODEL:
            raise ValueError(
                f"tracking.registered_model = {SHAPES_MODEL!r} is that of the shapes world, but "
                f"data.source = {self.data.source!r}; set it to null, or to a name of your own"
            )
        return self

    @property
    def registered_model(self) -> str:
        """The name in the model registry."""
        given = self.tracking.registered_model
        return given or f"hermesflow-{re.sub(r'[^A-Za-z0-9._-]+', '-', self.data.title)}"

    def _check_objective(self) -> None:
        if self.training.objective.name == "internal_gap" and self.scoring.judge != "self":
            raise ValueError(
                "training.objective.name = 'internal_gap' learns from what the own understanding "
                f"says, but scoring.judge = {self.scoring.judge!r}; set it to self"
            )
        if self.training.objective.learns_from != "groups":
            return
        name = f"training.objective.name = {self.training.objective.name!r}"
        if sum(one.num_samples for one in self.sampling.captions.settings) < 2:
            raise ValueError(
                f"{name} compares captions of a picture, but sampling.captions has one; raise its "
                "num_samples"
            )
        if self.pairing.winner == "truth":
            raise ValueError(
                f"{name} learns from samples alone, but pairing.winner = 'truth'; set it to best"
            )

    def _check_benchmarks(self) -> None:
        names = [chosen.name for chosen in self.benchmarks]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"benchmarks has {min(twice)} twice; leave one of them")
        for chosen in self.benchmarks:
            if not BENCHMARKS[chosen.name].files and self.data.source != "shapes":
                raise ValueError(
                    f"benchmarks has {chosen.name}, which asks about shapes, but data.source = "
                    f"{self.data.source!r}; take it out"
                )
            if chosen.judges.get("judge") == ENDPOINT and self.evaluation.endpoint is None:
                raise ValueError(
                    f"benchmarks: {chosen.name} has judge = 'endpoint', but evaluation.endpoint is "
                    "null; say there which model answers, or set judge: self"
                )


def load_config(path: str | Path, overrides: Mapping[str, object] | None = None) -> Config:
    """Read a run's config; UserError lists every problem with field, value and way out."""
    return load_settings(path, Config, overrides or {})
