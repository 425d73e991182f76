"""MLflow runs: one for each self-play, with one nested run for each iteration.

Runs are found again by a tag with a stable key, and points that are there are not logged again, so
that a repeated or resumed self-play continues its runs.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from core.artifact import ArtifactRef
from core.config import Config
from tasks._tracking.connection import Connection, connect
from tasks._tracking.registry import Registry

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

KEY = "hermesflow.key"
# These may differ between a run and its continuation.
NOT_IN_KEY = {"iterations", "store", "tracking", "runtime"}
BATCH = 1000  # metrics a call, the limit of MLflow
PARAMS = 100  # parameters a call, likewise
OVERVIEW = ("understanding", "generation", "gap", "all_right")  # on the parent, by iteration


def open_tracker(config: Config) -> Tracker:
    """The run of this self-play, new or continued; a silent tracker if MLflow cannot be had."""
    return Tracker(connect(config.tracking), config)


def self_play_key(config: Config) -> str:
    """Equal for runs whose results are the same iteration by iteration."""
    document = config.model_dump(mode="json", exclude=NOT_IN_KEY)
    return sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


class Run:
    """One MLflow run; as a context manager it ends as finished, or as failed after an error."""

    def __init__(
        self, connection: Connection, config: Config, name: str, key: str, tags: Mapping[str, str]
    ) -> None:
        self._connection, self._config = connection, config
        self.run_id: str = ""
        self._latest: dict[str, float] = {}
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._history: dict[str, dict[int, float]] = {}
        connection.attempt(lambda client: self._find_or_make(client, name, key, tags))
        self._log_config()

    @property
    def url(self) -> str:
        """Address of the run's page; empty without a server."""
        if not self.run_id or not self._connection.uri.startswith("http"):
            return ""
        experiment = self._connection.experiment_id
        return f"{self._connection.uri.rstrip('/')}/#/experiments/{experiment}/runs/{self.run_id}"

    @property
    def registry(self) -> Registry:
        """The model registry behind the same connection."""
        return Registry(self._connection, self._config.tracking.registered_model)

    def log_values(self, values: Mapping[str, float]) -> None:
        """Log metrics that have one value a run; an unchanged value is not logged again."""
        given = {metric_name(name): float(value) for name, value in values.items()}
        new = {k: v for k, v in given.items() if not _same(self._latest.get(k), v)}
        if self._log([(name, value, 0) for name, value in new.items()]):
            self._latest.update(new)

    def log_curves(self, rows: Sequence[Mapping[str, float]], prefix: str = "train") -> None:
        """Log each row's values at its `step`; may be called again while rows are added."""
        points = [
            (metric_name(f"{prefix}/{name}"), float(value), int(row["step"]))
            for row in rows
            for name, value in row.items()
            if name != "step"
        ]
        mark = f"hermesflow.logged.{prefix}"
        digest = sha256(json.dumps(points).encode()).hexdigest()
        if self._tags.get(mark) == digest:
            return  # without asking for the history of every curve
        if self.log_new(points):
            self.set_tags({mark: digest})

    def log_refs(self, refs: Mapping[str, ArtifactRef]) -> None:
        """Tag the run with the artifacts it stands for."""
        self.set_tags(
            {
                f"{name}.{field}": value
                for name, ref in refs.items()
                for field, value in (("uri", ref.uri), ("digest", ref.digest))
            }
        )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags that differ from those on the run."""
        for name, value in tags.items():
            if self._tags.get(name) != value:
                self._connection.attempt(
                    lambda c, n=name, v=value: c.set_tag(self.run_id, n, v)  # type: ignore[misc]
                )
                self._tags[name] = value

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        status = "FINISHED" if kind is None else "FAILED"
        self._connection.attempt(lambda client: client.set_terminated(self.run_id, status))

    def _find_or_make(
        self, client: MlflowClient, name: str, key: str, tags: Mapping[str, str]
    ) -> None:
        experiment = self._connection.experiment_id
        found = client.search_runs([experiment], f"tags.`{KEY}` = '{key}'", max_results=1)
        if found:
            run = found[0]
            client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = client.create_run(experiment, tags={KEY: key, **tags}, run_name=name)
        self.run_id = run.info.run_id
        self._latest = dict(run.data.metrics)
        self._params = dict(run.data.params)
        self._tags = dict(run.data.tags)

    def _log_config(self) -> None:
        """Parameters are written once and stay; the file holds the config of the latest run."""
        document = self._config.model_dump(mode="json")
        flat = flatten(document)
        digest = sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
        if self._tags.get("hermesflow.config") == digest:
            return
        new = [(name, value) for name, value in flat.items() if name not in self._params]

        def write(client: MlflowClient) -> None:
            from mlflow.entities import Param

            for first in range(0, len(new), PARAMS):
                chunk = [Param(name, value) for name, value in new[first : first + PARAMS]]
                client.log_batch(self.run_id, params=chunk)
            client.log_dict(self.run_id, document, "config.yaml")

        self._connection.attempt(write)
        self.set_tags({"hermesflow.config": digest})

    def log_new(self, points: Sequence[tuple[str, float, int]]) -> bool:
        """Log those of the points (name, value, step) that are not on the run yet."""
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
        history = self._connection.attempt(lambda c: c.get_metric_history(self.run_id, name))
        return {metric.step: metric.value for metric in history or ()}

    def _log(self, points: Sequence[tuple[str, float, int]]) -> bool:
        now = int(time.time() * 1000)

        def write(client: MlflowClient) -> bool:
            metrics = _as_metrics(points, now)
            for first in range(0, len(metrics), BATCH):
                client.log_batch(self.run_id, metrics=metrics[first : first + BATCH])
            return True

        return bool(self._connection.attempt(write))


class Tracker(Run):
    """The run of a whole self-play."""

    def __init__(self, connection: Connection, config: Config) -> None:
        self._key = self_play_key(config)
        super().__init__(connection, config, f"self-play seed {config.seed}", self._key, {})

    @property
    def enabled(self) -> bool:
        """Whether anything is tracked; false also after MLflow was lost."""
        return self._connection.open

    def iteration(self, index: int) -> IterationRun:
        """The nested run of iteration `index`; 0 is the base checkpoint."""
        return IterationRun(self, index)


class IterationRun(Run):
    """The run of one iteration: of its stages and of the checkpoint that they made."""

    def __init__(self, parent: Tracker, index: int) -> None:
        self._parent, self._index = parent, index
        name = f"iteration {index}" if index else "base"
        tags = {"mlflow.parentRunId": parent.run_id, "iteration": str(index)}
        super().__init__(parent._connection, parent._config, name, f"{parent._key}/{index}", tags)

    def log_metrics(self, metrics: pa.Table) -> None:
        """Log a `metrics` table; its main values also on the parent, at the iteration's step."""
        self.log_values(metric_values(metrics))
        overview = [
            (row["name"], row["value"], self._index)
            for row in metrics.to_pylist()
            if row["group"] == "all" and row["name"] in OVERVIEW
        ]
        self._parent.log_new(overview)


def metric_values(metrics: pa.Table) -> dict[str, float]:
    """A `metrics` table under the names of MLflow: gap, gap_low, all_right/counting, ..."""
    values = {}
    for row in metrics.to_pylist():
        group = row["group"].removeprefix("category/")
        if not group or group.endswith("/"):
            continue  # records without a category, or without a composition
        suffix = "" if group == "all" else f"/{group}"
        for field, ending in (("value", ""), ("low", "_low"), ("high", "_high")):
            values[f"{row['name']}{ending}{suffix}"] = row[field]
    return values


def metric_name(name: str) -> str:
    """`name` with only those characters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def flatten(document: Any, path: str = "") -> dict[str, str]:
    """Nested config values by dotted path, as text."""
    if isinstance(document, dict):
        items = [(f"{path}.{key}" if path else key, value) for key, value in document.items()]
        return {k: v for name, value in items for k, v in flatten(value, name).items()}
    return {path: document if isinstance(document, str) else json.dumps(document)}


def _same(old: float | None, new: float) -> bool:
    return old is not None and (old == new or (math.isnan(old) and math.isnan(new)))


def _as_metrics(points: Sequence[tuple[str, float, int]], timestamp: int) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(name, value, timestamp, step) for name, value, step in points]
