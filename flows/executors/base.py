"""What an executor is given, and the executor that runs it in this process."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

from core.artifact import ArtifactRef
from core.config import Config
from core.stage import WHOLE, Inputs, Shard, Stage, StageResult, as_lists, run_shard, stage_key
from core.store import Store


@dataclass(frozen=True)
class Step:
    """Where in a self-play a stage runs: what people see, and the MLflow run that it belongs to.

    `checkpoint` is the one that samples, is trained or judged; none for what comes before all.
    `detail` tells runs of one stage in one iteration apart (the name of a benchmark).
    """

    iteration: int
    label: str
    checkpoint: ArtifactRef | None = None
    run_id: str = ""
    url: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Job:
    """A stage, or one shard of it, with all that it reads."""

    stage: Stage
    config: Config
    inputs: Inputs
    step: Step
    shard: Shard = WHOLE

    @cached_property
    def key(self) -> str:
        """The key of the artifact, computed once."""
        return stage_key(self.stage, self.config, self.inputs)

    @cached_property
    def store(self) -> Store:
        """The store of the config."""
        return Store(self.config.store)

    def find(self) -> StageResult | None:
        """The artifact if it is there."""
        ref = self.store.find(self.stage.name, self.key)
        return None if ref is None else StageResult(ref, True, 0.0)

    def documents(self) -> dict[str, Any]:
        """All but the stage as JSON documents, for another process."""
        inputs = as_lists(self.stage, self.inputs)
        step = asdict(self.step)
        return {
            "config": self.config.model_dump(mode="json"),
            "inputs": {name: [asdict(ref) for ref in refs] for name, refs in inputs.items()},
            "step": step,
            "shard": [self.shard.index, self.shard.count],
        }


def job_from(stage: Stage, documents: dict[str, Any]) -> Job:
    """The job that `Job.documents` describes."""
    step = documents["step"]
    checkpoint = step["checkpoint"] and ArtifactRef(**step["checkpoint"])
    return Job(
        stage,
        Config.model_validate(documents["config"]),
        {name: [ArtifactRef(**ref) for ref in refs] for name, refs in documents["inputs"].items()},
        Step(**{**step, "checkpoint": checkpoint}),
        Shard(*documents["shard"]),
    )


class Executor(Protocol):
    """Runs jobs somewhere."""

    def run(self, job: Job) -> StageResult | None:
        """The artifact, made if it was not there; None while other shards of it are missing."""


class InProcess:
    """Runs jobs in this process."""

    def run(self, job: Job) -> StageResult | None:
        """As `Executor.run`."""
        return run_shard(job.stage, job.config, job.store, job.inputs, job.shard, key=job.key)
