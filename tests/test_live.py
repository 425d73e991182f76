"""Curves are seen while a stage runs, and MLflow can neither delay nor stop it."""

import time
from collections.abc import Callable
from threading import Event

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from core.config import Config, Tracking
from core.progress import progress
from tests.stage_inputs import make_config
from tracking import live
from tracking.live import shown_live
from tracking.runs import open_tracker

ROWS = [{"step": float(step), "loss": 1.0 / step} for step in range(1, 4)]
PATIENCE = 20.0


def tracked() -> Config:
    return make_config(tracking__enabled=True)


def train(rows: list[dict[str, float]], pause: Callable[[], None] = lambda: None) -> None:
    with progress("train", len(rows)) as bar:
        for row in rows:
            bar.values(row)
            bar.update()
        pause()


def until(ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def points(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    history = MlflowClient(tracking_uri=uri).get_metric_history(run_id, name)
    return sorted((metric.step, metric.value) for metric in history)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FLUSH_SECONDS", 0.05)
    monkeypatch.setattr(live, "SAMPLE_SECONDS", 0.05)


@pytest.mark.usefixtures("quick")
def test_curves_and_load_are_there_before_the_stage_ends(mlflow_uri: str) -> None:
    config = tracked()
    with open_tracker(config) as tracker, tracker.iteration(1) as run:
        client = MlflowClient(tracking_uri=mlflow_uri)

        def shown() -> bool:
            found = client.get_run(run.run_id).data.metrics
            return {"train/loss", "system/cpu_utilization_percentage"} <= set(found)

        with shown_live(config.tracking, run.run_id):
            train(ROWS, lambda: until(shown))
        # What the finished artifact says is there already.
        run.log_curves(ROWS)
        expected = [(int(row["step"]), row["loss"]) for row in ROWS]
        assert points(mlflow_uri, run.run_id, "train/loss") == expected


def test_stage_that_ends_at_once_still_sends_its_last_points(mlflow_uri: str) -> None:
    config = tracked()
    with open_tracker(config) as tracker, tracker.iteration(1) as run:
        with shown_live(config.tracking, run.run_id):
            train(ROWS[:2])
        # Killed before its next saved state, it does the second step again.
        with shown_live(config.tracking, run.run_id):
            train(ROWS)
        assert [step for step, _ in points(mlflow_uri, run.run_id, "train/loss")] == [1, 2, 3]


@pytest.mark.usefixtures("quick")
def test_failing_server_stops_nothing_and_says_nothing(
    mlflow_uri: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tracked()
    asked: list[object] = []

    def gone(*args: object, **options: object) -> None:
        asked.append(args)
        raise MlflowException("the server is gone")

    with open_tracker(config) as tracker, tracker.iteration(1) as run, monkeypatch.context() as p:
        p.setattr(MlflowClient, "get_run", gone)
        with shown_live(config.tracking, run.run_id):
            train(ROWS, lambda: until(lambda: asked))
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []


def test_server_that_hangs_delays_a_stage_only_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "CLOSE_SECONDS", 0.1)
    answer = Event()
    answered: list[bool] = []
    monkeypatch.setattr(live._Stream, "_send_all", lambda self: answered.append(answer.wait(60.0)))
    with shown_live(tracked().tracking, "run"):
        train(ROWS)
    assert answered == []
    answer.set()


def test_cached_stage_does_not_ask_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tracking: Tracking, *, warn: bool) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(live, "connect", refuse)
    with shown_live(tracked().tracking, "run"):
        pass


def test_values_are_seen_by_nobody_without_a_run() -> None:
    with shown_live(tracked().tracking, ""):
        train(ROWS)
    with shown_live(make_config().tracking, "run"):
        train(ROWS)
