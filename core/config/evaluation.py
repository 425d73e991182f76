"""What a checkpoint is held to: evaluation, gate, and the tracking of both."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from core.config.data import Endpoint
from core.config.fields import Count, FamilyName, MaxUnanswered
from core.settings import Section

JudgeKind = Literal["oracle", "reader", "nearest", "endpoint", "checkpoint", "encoder", "base"]


class Reader(Section):
    """Small networks that learn the pool's questions from its real pictures (judge: reader)."""

    networks: int = Field(3, ge=1, le=16, description="networks whose mean answers")
    pictures: int = Field(
        12_000,
        ge=64,
        description="pictures that each learns from, one after the other and again; at most so "
        "many records are read",
    )


class Evaluation(Section):
    """Judging a checkpoint on held-out records."""

    judge: JudgeKind = Field(
        description="who answers about generated images. Independent of the model: oracle (pixels; "
        "shapes world), reader (learns from the pool's real pictures), nearest (answers as about "
        "the nearest of them), endpoint (the vision-language model of evaluation.endpoint), "
        "checkpoint (another model), encoder (a "
        "CLIP model). Not independent: base (the frozen base checkpoint)"
    )
    folder: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="of the judge: a model for checkpoint, a CLIP model for encoder and, in place "
        "of pixels, for reader; null for others",
    )
    family: FamilyName | None = Field(
        None, description="family of the judge in folder; null: that of the model"
    )
    records: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="real pictures that reader and nearest know beside those of the pool: a "
        "Parquet file or folder in the pool schema; null: none",
    )
    reader: Reader = Field(default_factory=lambda: Reader(networks=3, pictures=12_000))
    endpoint: Endpoint | None = Field(description="the outside judge; null: none")
    max_unanswered: MaxUnanswered = Field(
        0.05, description="largest share of questions to the judge or the model without an answer"
    )
    images_per_prompt: Count = Field(description="generated images for each held-out prompt")
    bootstrap_samples: int = Field(ge=100, description="resamples of records for the intervals")
    confidence: float = Field(ge=0.5, lt=1.0, description="coverage of the intervals")

    @model_validator(mode="after")
    def _folder_fits(self) -> Evaluation:
        if self.judge in ("checkpoint", "encoder") and self.folder is None:
            raise ValueError(
                f"judge = {self.judge!r}, but folder is null; give the folder of that model, or "
                "another judge"
            )
        if self.folder is not None and self.judge not in ("checkpoint", "encoder", "reader"):
            raise ValueError(
                f"folder = {self.folder!r}, but judge = {self.judge!r} reads none; set folder: "
                "null, or judge to checkpoint, encoder or reader"
            )
        if self.records is not None and self.judge not in ("reader", "nearest"):
            raise ValueError(
                f"records = {self.records!r}, but judge = {self.judge!r} learns from none; set "
                "records: null, or judge to reader or nearest"
            )
        return self


class Gate(Section):
    """What a candidate must show against the champion, on the same records, to replace it."""

    min_generation_gain: float = Field(ge=-1.0, le=1.0, description="G must rise by more than this")
    max_understanding_loss: float = Field(ge=0.0, le=1.0, description="U may fall by at most this")
    beyond_interval: bool = Field(
        description="judge the gain by the lower end of its paired interval, the loss by the upper"
    )
    own_taste: bool = Field(
        False,
        description="promote although no independent judge has looked (evaluation.judge: base): "
        "that the model likes its own drawings more is then enough",
    )


class Tracking(Section):
    """MLflow."""

    enabled: bool = Field(description="false: run without MLflow")
    experiment: str = Field(min_length=1, description="MLflow experiment")
    registered_model: Annotated[str, Field(min_length=1)] | None = Field(
        description="name in the model registry; null: hermesflow- and the name of the pool"
    )
