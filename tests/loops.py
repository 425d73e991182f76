"""Runs of the whole loop on a few records, stage by stage without servers."""

import json
from pathlib import Path
from tempfile import NamedTemporaryFile

import yaml

from core.artifact import ArtifactRef
from core.config import Config, load_config
from core.stage import StageResult, as_lists
from core.store import Store
from flows.executors.base import Job
from flows.executors.local import LocalProcesses
from flows.self_play import SelfPlay, origin_of
from tests.limits import run_python
from tracking.champion import Champion
from tracking.runs import open_tracker

QUICK = Path(__file__).parent / "configs/quick.yaml"


class Runner(LocalProcesses):
    """Runs stages on this machine and remembers which were cached."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int, StageResult]] = []

    def run(self, job: Job) -> StageResult:
        result = super().run(job)
        assert result is not None
        self.done.append((job.stage.name, job.step.iteration, result))
        return result

    def fresh(self) -> list[str]:
        """Stages whose body ran."""
        return [name for name, _, result in self.done if not result.cached]


class Commands(Runner):
    """Runs each stage by its command, in a process that knows no more than config and inputs."""

    def run(self, job: Job) -> StageResult:
        with NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as config:
            yaml.safe_dump(job.config.model_dump(mode="json"), config)
            config.flush()
            given = ["--config", config.name, "--store", job.config.store]
            for name, refs in as_lists(job.stage, job.inputs).items():
                for uri in [ref.uri for ref in refs] or [""]:
                    given += ["--input", f"{name}={uri}"]
            module = job.stage.body.__module__
            # `sample-captions` is the command `captions` of tasks.sample; each benchmark is one.
            name = job.stage.name.removeprefix(f"{module.removeprefix('tasks.')}-")
            ended = run_python("-m", module, job.step.detail or name, *given)
        assert ended.returncode == 0, ended.stderr
        result = StageResult(ArtifactRef(**json.loads(ended.stdout)), False, 0.0)
        self.done.append((job.stage.name, job.step.iteration, result))
        return result


Finished = tuple[Path, Runner, str]
"""Store, runner and table of a loop that has ended."""


def quick(store: Path | str, **changes: object) -> Config:
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    fixed = {"store": str(store), "tracking.enabled": False, "runtime.threads": 1, "iterations": 1}
    return load_config(QUICK, fixed | changes)


def quick_exact(store: Path | str, family: str, checkpoint: Path, **changes: object) -> Config:
    """For a family that draws code by code; what random weights make is good enough for pairs."""
    fixed: dict[str, object] = {
        "model__family": family,
        "model__checkpoint": str(checkpoint),
        "sampling__images": {
            "sampler": "autoregressive",
            "num_samples": 3,
            "guidance": 1.0,
            "temperature": 1.0,
        },
        "scoring__require_fit": False,
        "pairing__caption": {"min_best": -1.0, "min_margin": 0.0, "loser": "worst"},
        "pairing__image": {"min_best": 0.0, "min_margin": 0.0, "loser": "worst"},
        "training__image_draws": 0,
        "benchmarks": [],
    }
    return quick(store, **fixed | changes)


def play(
    config: Config, champion: Champion | None = None, runner: Runner | None = None
) -> tuple[Runner, str]:
    Store(config.store).check()
    runner = runner or Runner()
    with open_tracker(config, origin_of(champion)) as tracker:
        return runner, SelfPlay(config, tracker, runner, champion).run()
