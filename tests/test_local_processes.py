"""Stages in several processes of this machine. Importing torch in each is what takes long."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import MagicMock

import psutil
import pytest
import torch
from limits import HANGS_SECONDS, ROOT
from prefect.exceptions import TerminationSignal
from stage_inputs import make_config, pool_row, publish
from test_train import NUM_PAIRS, Loop, metrics

from core.config import Config
from core.errors import UserError
from core.progress import observed_by, values_observed_by
from core.stage import WHOLE, Inputs, Shard, Stage, StageResult, run_stage
from core.store import Store
from flows.executors import local
from flows.executors.base import Job, Step
from flows.executors.local import LocalProcesses, num_processes
from tasks.sample import CAPTIONS
from tasks.train import TRAIN


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path / "store")


@pytest.fixture
def children() -> Iterator[Callable[[], list[psutil.Process]]]:
    """The ranks of what this process has started meanwhile; none of it may be left."""
    before = set(psutil.Process().children())

    def ranks() -> list[psutil.Process]:
        launchers = [child for child in psutil.Process().children() if child not in before]
        return [rank for launcher in launchers for rank in launcher.children()]

    yield ranks
    assert not set(psutil.Process().children()) - before


def run_on_machine(
    stage: Stage, config: Config, store: Store, inputs: Inputs, shard: Shard = WHOLE
) -> StageResult | None:
    config = config.model_copy(update={"store": store.uri})
    return LocalProcesses().run(Job(stage, config, inputs, Step(0, "base"), shard))


def two(**changes: object) -> Config:
    return make_config(runtime__processes=2, **changes)


def test_processes_share_samples_and_give_those_of_one(
    loop: Loop, tmp_path: Path, children: object
) -> None:
    rows = [pool_row(f"r{number}") for number in range(10)]
    inputs = {"pool": publish(loop.store, "pool", [rows]), "checkpoint": loop.checkpoint}
    seen: list[tuple[int, int]] = []
    with observed_by(lambda description, done, total: seen.append((done, total))):
        result = run_on_machine(CAPTIONS, two(), loop.store, inputs)
    assert result is not None
    assert not result.cached
    assert seen[-1] == (10, 10)
    other = Loop(tmp_path / "other")
    publish(other.store, "pool", [rows])
    alone = run_stage(CAPTIONS, make_config(), other.store, inputs)
    assert result.ref.digest == alone.ref.digest
    again = run_on_machine(CAPTIONS, two(), loop.store, inputs)
    assert again is not None
    assert again.cached


@pytest.mark.slow
def test_processes_divide_the_share_of_their_machine(loop: Loop) -> None:
    rows = [pool_row(f"r{number}") for number in range(10)]
    inputs = {"pool": publish(loop.store, "pool", [rows]), "checkpoint": loop.checkpoint}
    config = two(sampling__shard_records=1)
    assert run_on_machine(CAPTIONS, config, loop.store, inputs, Shard(1, 2)) is None
    result = run_on_machine(CAPTIONS, config, loop.store, inputs, Shard(0, 2))
    assert result is not None
    assert result.ref.stage == "sample-captions"


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_processes_train_together_and_show_it_here(
    loop: Loop, tmp_path: Path, children: object, sharded: bool
) -> None:
    config = two(runtime__shard_weights=sharded)
    rows: list[float] = []
    seen: list[tuple[str, int, int]] = []
    with (
        observed_by(lambda *step: seen.append(step)),
        values_observed_by(lambda row: rows.append(row["loss"])),
    ):
        result = run_on_machine(TRAIN, config, loop.store, loop.inputs(config))
    assert result is not None
    alone = Loop(tmp_path / "other").train(make_config())
    losses = [row["loss"] for row in metrics(alone)]
    assert rows == pytest.approx(losses, rel=2e-4)
    assert ("train", 6, 6) in seen
    assert ("encode images", NUM_PAIRS, NUM_PAIRS) in seen


@pytest.mark.slow
def test_an_error_in_a_process_is_the_error_of_the_stage(loop: Loop, children: object) -> None:
    config = two(training__batch_size=1)
    with pytest.raises(UserError, match=r"2 processes cannot share training\.batch_size = 1"):
        run_on_machine(TRAIN, config, loop.store, loop.inputs(config))


@pytest.mark.slow
def test_a_killed_process_ends_the_stage_and_the_next_run_goes_on(
    loop: Loop, tmp_path: Path, children: Callable[[], list[psutil.Process]]
) -> None:
    config = two(training__epochs=20)
    inputs = loop.inputs(config)

    def kill(description: str, done: int, total: int) -> None:
        if description == "train" and done > 4 and children():
            children()[-1].kill()

    with observed_by(kill), pytest.raises(UserError, match="was ended by signal 9") as error:
        run_on_machine(TRAIN, config, loop.store, inputs)
    assert "what is done is kept" in str(error.value)
    result = run_on_machine(TRAIN, config, loop.store, inputs)
    assert result is not None
    straight = Loop(tmp_path / "other").train(make_config(training__epochs=20))
    losses = [row["loss"] for row in metrics(loop.store.open(result.ref))]
    assert losses == pytest.approx([row["loss"] for row in metrics(straight)], rel=1e-3)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_local_processes import Loop, TRAIN, run_on_machine, two
loop, config = Loop(Path({store!r})), two(training__epochs=1000)
run_on_machine(TRAIN, config, loop.store, loop.inputs(config))
"""


@pytest.mark.slow
def test_no_process_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    script = SCRIPT.format(tests=str(Path(__file__).parent), store=str(tmp_path / "store"))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment, cwd=ROOT)
    try:
        deadline = time.monotonic() + HANGS_SECONDS
        # The launcher and two ranks.
        while len(members := psutil.Process(parent.pid).children(recursive=True)) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs(members, timeout=20)
    assert alive == []


def test_processes_are_one_for_each_gpu_or_as_many_as_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)

    def num(device: str, processes: int) -> int:
        config = make_config(runtime__device=device, runtime__processes=processes)
        return num_processes(config.runtime)

    assert [num("cuda", 0), num("cuda", 2), num("cuda:1", 0), num("cuda:1", 1)] == [3, 2, 1, 1]
    assert [num("cpu", 0), num("cpu", 4)] == [1, 4]
    with pytest.raises(UserError, match=r"runtime.processes = 4, but 3 GPUs are visible"):
        num("cuda", 4)
    with pytest.raises(UserError, match=r"cuda:1 names one GPU for runtime\.processes = 2"):
        num("cuda:1", 2)


@pytest.mark.parametrize(
    ("error", "asked"),
    [(KeyboardInterrupt(), True), (TerminationSignal(signal=15), True), (ValueError(), False)],
)
def test_ranks_save_their_state_when_their_run_is_to_end_and_not_when_it_fails(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, asked: bool
) -> None:
    """Prefect raises what is neither an Exception nor a KeyboardInterrupt at SIGTERM."""
    launcher = MagicMock()
    monkeypatch.setattr(local.subprocess, "Popen", lambda *_, **__: launcher)
    with pytest.raises(type(error)), local._launched("unused"):
        raise error
    assert launcher.terminate.called == asked
    assert launcher.stdin.close.called
