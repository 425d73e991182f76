"""The metric points of one MLflow run: those that are on it already are not logged again."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from tracking.connection import Connection

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = 1000  # metrics a call, the limit of MLflow
CURVES = "train"  # what the names of training curves begin with

Point = tuple[str, float, int]  # name, value, step


class MetricLog:
    """Logs what is new; asks for the history of a metric once, when it gets its first point."""

    def __init__(self, connection: Connection, run_id: str, latest: Mapping[str, float]) -> None:
        self._connection, self._run_id = connection, run_id
        self._latest = dict(latest)
        self._history: dict[str, dict[int, float]] = {}

    def refresh(self) -> None:
        """Forget what was known, since another process or thread has logged to the run."""
        run = self._connection.attempt(lambda client: client.get_run(self._run_id))
        self._latest = dict(run.data.metrics) if run else {}
        self._history = {}

    def log_changed(self, values: Mapping[str, float]) -> None:
        """Log metrics with one value a run unless they have that value."""
        given = {metric_name(name): float(value) for name, value in values.items()}
        new = {k: v for k, v in given.items() if not _same(self._latest.get(k), v)}
        if self._log([(name, value, 0) for name, value in new.items()]):
            self._latest.update(new)

    def log_new(self, points: Sequence[Point]) -> bool:
        """Log those of the points that are not on the run yet; false once MLflow has failed."""
        for name in {name for name, _, _ in points} - set(self._history):
            self._history[name] = self._known(name)
        new = [p for p in points if not _same(self._history[p[0]].get(p[2]), p[1])]
        done = self._log(new)
        for name, value, step in new:
            self._history[name][step] = value
        return done

    def _known(self, name: str) -> dict[int, float]:
        if name not in self._latest:
            return {}
        history = self._connection.attempt(lambda c: c.get_metric_history(self._run_id, name))
        return {metric.step: metric.value for metric in history or ()}

    def _log(self, points: Sequence[Point]) -> bool:
        now = int(time.time() * 1000)

        def write(client: MlflowClient) -> bool:
            from mlflow.entities import Metric

            metrics = [Metric(name, value, now, step) for name, value, step in points]
            for first in range(0, len(metrics), BATCH):
                client.log_batch(self._run_id, metrics=metrics[first : first + BATCH])
            return True

        return bool(self._connection.attempt(write))


def curve_points(rows: Iterable[Mapping[str, float]]) -> list[Point]:
    """Each row's values at its `step`."""
    return [
        (metric_name(f"{CURVES}/{name}"), float(value), int(row["step"]))
        for row in rows
        for name, value in row.items()
        if name != "step"
    ]


def metric_name(name: str) -> str:
    """`name` with only those characters that MLflow takes, and at most two slashes.

    What stands before the last slash is a section of its charts, and there would be dozens.
    """
    parts = re.sub(r"[^\w\-. :/]", "_", name).split("/")
    return "/".join([*parts[:2], ".".join(parts[2:])] if len(parts) > 3 else parts)


def _same(old: float | None, new: float) -> bool:
    return old is not None and (old == new or (math.isnan(old) and math.isnan(new)))
