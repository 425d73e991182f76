"""What the parent does about its runs: tries again, gives up, cancels."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect import State
from prefect.client.schemas.objects import FlowRun, Worker, WorkerStatus
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running

from core.artifact import ArtifactRef
from core.errors import UserError
from core.stage import Shard
from flows.executors import work_pool
from flows.executors.base import Job, Step
from flows.executors.work_pool import _Run, _Runs
from tasks.sample import IMAGES
from tests.loops import quick

SHARDS = [Shard(index, 4) for index in range(4)]
NO_IMAGE = "Failed to submit flow run to infrastructure: ImageNotFound: No such image: hermesflow:x"


class Server:
    """Takes the place of Prefect's client: remembers the states that runs were to get."""

    def __init__(self) -> None:
        self.states: list[tuple[object, str]] = []
        self.workers: list[Worker] = []

    def set_flow_run_state(self, run: object, state: State[Any], force: bool = False) -> None:
        self.states.append((run, state.type.value))

    def read_workers_for_work_pool(self, pool: str) -> list[Worker]:
        return self.workers


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> _Runs:
    """Runs that are submitted to nobody, without a server and without waiting."""
    waits: list[float] = []
    monkeypatch.setattr(work_pool.time, "sleep", waits.append)
    monkeypatch.setattr(work_pool, "get_run_logger", lambda: logging.getLogger("test"))
    step = Step(1, "iteration 1", ArtifactRef("base", "k", "file:///s/base/k", "d" * 64))
    server: Any = Server()
    made = _Runs(server, "docker", Job(IMAGES, quick("unused"), {}, step))

    def submit(shard: Shard, attempt: int = 0) -> None:
        add(made, shard, Pending(), attempt=attempt)

    monkeypatch.setattr(made, "_submit", submit)
    monkeypatch.setattr(made, "waits", waits, raising=False)
    return made


def add(
    runs: _Runs, shard: Shard, state: State[Any], *, seconds: float = 0.0, attempt: int = 0
) -> _Run:
    run = FlowRun(flow_id=uuid4(), name=f"shard {shard.index}", state=state, state_type=state.type)
    run.estimated_run_time = timedelta(seconds=seconds)
    run.labels = {"prefect.worker.name": "worker 1"}
    runs.under_way[shard] = _Run(shard, run, attempt)
    return runs.under_way[shard]


def test_crashed_run_is_submitted_again_after_longer_and_longer_waits(runs: _Runs) -> None:
    for attempt in range(runs.compute.retries):
        runs._handle(add(runs, SHARDS[0], Crashed(message="exited with 137"), attempt=attempt))
    [last] = runs.under_way.values()
    assert last.attempt == 3
    assert runs.waits == [1.0, 2.0, 4.0]  # type: ignore[attr-defined]
    last.run.state = Crashed(message="exited with 137")
    with pytest.raises(
        UserError, match=r"crashed \(exited with 137\), and so did 3 before.*retries"
    ):
        runs._handle(last)


@pytest.mark.parametrize(
    ("state", "seconds", "message"),
    [
        (Crashed(message=NO_IMAGE), 0, "hermesflow:x; build it with `make image`"),
        (
            Failed(message="pool: no records; give some"),
            0,
            "iteration 1, stage sample-images: pool: no records",
        ),
        (Cancelled(), 0, "was cancelled"),
        (Running(), 7201, r"takes longer than 7200 s.*timeout_minutes"),
    ],
)
def test_what_no_further_try_would_cure_ends_the_parent(
    runs: _Runs, state: State[Any], seconds: float, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        runs._handle(add(runs, SHARDS[0], state, seconds=seconds))


def test_run_of_a_worker_that_is_gone_is_lost_even_before_it_began(
    runs: _Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_seconds_since_poll", lambda: 0.0)
    one = add(runs, SHARDS[0], Pending())
    assert one.run.state is not None
    one.run.state.timestamp = datetime.now(UTC) - timedelta(seconds=runs.compute.lost_seconds + 1)
    server: Any = runs.client
    for status in (WorkerStatus.ONLINE, WorkerStatus.OFFLINE):
        server.workers = [Worker(name="worker 1", work_pool_id=uuid4(), status=status)]
        assert server.states == []  # a worker that is there may be pulling the image
        runs._look_for_workers()
    assert server.states == [(one.run.id, "CRASHED")]


def test_whatever_happens_no_run_is_left_behind(
    runs: _Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = add(runs, SHARDS[0], Running())
    add(runs, SHARDS[1], Completed())

    def interrupt(shards: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "_adopt", interrupt)
    with pytest.raises(KeyboardInterrupt):
        runs.complete()
    assert runs.client.states == [(running.run.id, "CANCELLING")]  # type: ignore[attr-defined]
