"""Runs of the whole loop on a few records, stage by stage without servers."""

from pathlib import Path

from core.config import Config, load_config
from core.stage import StageResult
from core.store import Store
from flows.executors.base import Job
from flows.executors.local import LocalProcesses
from flows.self_play import SelfPlay, origin_of
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


Finished = tuple[Path, Runner, str]
"""Store, runner and table of a loop that has ended."""


def quick(store: Path | str, **changes: object) -> Config:
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    fixed = {"store": str(store), "tracking.enabled": False, "runtime.threads": 1, "iterations": 1}
    return load_config(QUICK, fixed | changes)


def play(config: Config, champion: Champion | None = None) -> tuple[Runner, str]:
    Store(config.store).check()
    runner = Runner()
    with open_tracker(config, origin_of(champion)) as tracker:
        return runner, SelfPlay(config, tracker, runner, champion).run()
