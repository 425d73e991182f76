"""What the parent does about its runs: tries again, gives up, doubles slow ones, cancels."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect import State
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running

from core.artifact import ArtifactRef
from core.errors import UserError
from core.stage import Share
from flows import pools
from flows.pools import _Batch, _Child
from flows.stages import Step
from tasks.sample import IMAGES
from tests.loops import quick

SHARES = [Share(index, 4) for index in range(4)]
NO_IMAGE = "Failed to submit flow run to infrastructure: ImageNotFound: No such image: hermesflow:x"


class Server:
    """Takes the place of Prefect's client: remembers which runs were to be cancelled."""

    def __init__(self) -> None:
        self.cancelled: list[object] = []

    def set_flow_run_state(self, run_id: object, state: State[Any]) -> None:
        assert state.is_cancelling()
        self.cancelled.append(run_id)


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch) -> _Batch:
    """A batch that submits into itself, without a server and without waiting."""
    waits: list[float] = []
    monkeypatch.setattr(pools.time, "sleep", waits.append)
    monkeypatch.setattr(pools, "get_run_logger", lambda: logging.getLogger("test"))
    step = Step(1, "iteration 1", ArtifactRef("base", "k", "file:///s/base/k", "d" * 64))
    server: Any = Server()
    made = _Batch(server, "docker", IMAGES, quick("unused"), {}, step)

    def submit(share: Share, attempt: int = 0) -> None:
        made.children.append(child(share, Pending(), attempt=attempt))

    monkeypatch.setattr(made, "_submit", submit)
    monkeypatch.setattr(made, "waits", waits, raising=False)
    return made


def child(share: Share, state: State[Any], *, seconds: float = 0.0, attempt: int = 0) -> _Child:
    run = FlowRun(flow_id=uuid4(), name=f"share {share.index}", state=state, state_type=state.type)
    run.estimated_run_time = timedelta(seconds=seconds)
    return _Child(share, run, attempt)


def shares(batch: _Batch) -> list[tuple[int, int]]:
    return [(c.share.index, c.attempt) for c in batch.children]


def test_crashed_run_is_submitted_again_after_longer_and_longer_waits(batch: _Batch) -> None:
    batch.children = [child(SHARES[0], Crashed(message="exited with 137"))]
    for _ in range(batch.compute.retries):
        batch._handle(batch.children[0])
        (again,) = batch.children
        again.run.state = Crashed(message="exited with 137")
    assert shares(batch) == [(0, 3)]
    assert batch.waits == [1.0, 2.0, 4.0]  # type: ignore[attr-defined]
    with pytest.raises(
        UserError, match=r"crashed \(exited with 137\), and so did 3 before.*retries"
    ):
        batch._handle(batch.children[0])


def test_what_no_try_would_cure_is_not_tried_again(batch: _Batch) -> None:
    batch.children = [child(SHARES[0], Crashed(message=NO_IMAGE))]
    with pytest.raises(UserError, match=r"hermesflow:x; build it with `make image`"):
        batch._handle(batch.children[0])
    assert batch.children == []


def test_refusal_of_a_stage_is_the_parent_s(batch: _Batch) -> None:
    batch.children = [child(SHARES[0], Failed(message="pool: no records; give some"))]
    with pytest.raises(UserError, match="iteration 1, stage sample-images: pool: no records"):
        batch._handle(batch.children[0])


def test_cancelled_run_ends_the_parent(batch: _Batch) -> None:
    batch.children = [child(SHARES[0], Cancelled())]
    with pytest.raises(UserError, match="was cancelled"):
        batch._handle(batch.children[0])


def test_run_that_takes_too_long_ends_the_parent(batch: _Batch) -> None:
    batch.children = [child(SHARES[0], Running(), seconds=7201)]
    with pytest.raises(UserError, match=r"takes longer than 7200 s.*timeout_minutes"):
        batch._handle(batch.children[0])


def test_slow_share_is_done_by_a_second_run_and_counted_once(batch: _Batch) -> None:
    batch.durations = {SHARES[0]: 30.0, SHARES[1]: 34.0}
    slow = child(SHARES[2], Running(), seconds=95.0)
    batch.children = [slow]
    batch._handle(slow)
    assert shares(batch) == [(2, 0)]  # not yet three times as long as others
    slow.run.estimated_run_time = timedelta(seconds=97.0)
    batch._handle(slow)
    batch._handle(slow)
    assert shares(batch) == [(2, 0), (2, 1)]
    second = batch.children[1]
    second.run.state = Completed()
    second.run.estimated_run_time = timedelta(seconds=20.0)
    batch._handle(second)
    assert batch.children == []
    assert batch.durations[SHARES[2]] == 20.0
    assert batch.client.cancelled == [slow.run.id]  # type: ignore[attr-defined]


def test_no_share_is_slow_before_half_of_them_are_done(batch: _Batch) -> None:
    batch.durations = {SHARES[0]: 1.0}
    batch.children = [child(SHARES[1], Running(), seconds=500.0)]
    batch._handle(batch.children[0])
    assert shares(batch) == [(1, 0)]


def test_run_of_a_worker_that_is_gone_is_lost_even_before_it_began(
    batch: _Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch.children = [child(SHARES[0], Pending())]
    state = batch.children[0].run.state
    assert state is not None
    state.timestamp = datetime.now(UTC) - timedelta(seconds=batch.compute.lost_seconds + 1)
    monkeypatch.setattr(batch, "_worker_is_gone", lambda child: False)
    batch._look_for_signs()
    assert shares(batch) == [(0, 0)]  # may be pulling the image
    monkeypatch.setattr(batch, "_worker_is_gone", lambda child: True)
    monkeypatch.setattr(batch, "_patiently", lambda ask: None)
    batch._look_for_signs()
    assert shares(batch) == [(0, 1)]


def test_whatever_happens_no_run_is_left_behind(batch: _Batch) -> None:
    running, done = child(SHARES[0], Running()), child(SHARES[1], Completed())
    batch.children = [running, done]
    with pytest.raises(KeyboardInterrupt), batch._ended():
        raise KeyboardInterrupt
    assert batch.client.cancelled == [running.run.id]  # type: ignore[attr-defined]
