"""MLflow runs: one for each self-play, with one nested run for each iteration.

Runs are found again by a tag with a stable key, and points that are there are not logged again, so
that a repeated or resumed self-play continues its runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import pyarrow as pa

from core.artifact import ArtifactRef
from core.cache import scratch
from core.config import Config
from core.settings import leaves
from data.schemas import IMAGE, table_named
from tracking.addresses import SELF_PLAY, VIEW_TAG, compare_page, run_page, runs_page, runs_view
from tracking.connection import Connection, connect
from tracking.metric_log import CURVES, MetricLog, curve_points
from tracking.registry import Registry

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

KEY = "hermesflow.key"
# These may differ between a run and its continuation.
NOT_IN_KEY = {"iterations", "store", "tracking", "runtime", "compute"}
NOTE = "mlflow.note.content"  # shown as the description of a run
PARAMS = 100  # parameters a call, the limit of MLflow
ALL = "all"
DIGEST = 36  # characters of a digest that MLflow stores
CONTEXT = "mlflow.data.context"  # the tag that its pages show
SCALARS = {
    pa.string(): "string",
    pa.binary(): "binary",
    pa.int32(): "integer",
    pa.int64(): "long",
    pa.float32(): "float",
    pa.float64(): "double",
}
# MLflow's charts begin with these, and its compare page shows the first against the iteration.
HEADLINE = ("gap", "understanding", "generation")


@dataclass(frozen=True)
class Origin:
    """Where a self-play starts: at the base checkpoint, or at another one with this digest."""

    label: str = "base"
    digest: str = ""

    @property
    def suffix(self) -> str:
        """What is added to the name of a self-play."""
        return f" from {self.label}" if self.digest else ""


BASE = Origin()


def open_tracker(config: Config, origin: Origin = BASE, *, warn: bool = True) -> Tracker:
    """The run of this self-play, new or continued; a silent tracker if MLflow cannot be had.

    `warn` is off for a further attempt, since the first has said what is wrong.
    """
    return Tracker(connect(config.tracking, warn=warn), config, origin)


def self_play_key(config: Config, origin: Origin = BASE) -> str:
    """Equal for runs whose results are the same iteration by iteration."""
    document = config.model_dump(mode="json", exclude=NOT_IN_KEY)
    if origin.digest:
        document["origin"] = origin.digest
    return sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


class Run:
    """One MLflow run; as a context manager it ends as finished, or as failed after an error."""

    def __init__(
        self,
        connection: Connection,
        config: Config,
        name: str,
        key: str,
        tags: Mapping[str, str],
        params: Mapping[str, str] | None = None,
        self_play: str = "",
    ) -> None:
        self._connection, self._config = connection, config
        self.run_id: str = ""
        self._self_play = self_play  # when it began, and what it is of
        self._points = MetricLog(connection, "", {})
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        connection.attempt(lambda client: self._find_or_make(client, name, key, tags))
        self._log_config(params or {})

    @property
    def url(self) -> str:
        """Address of the run's page; empty without a server."""
        if not self.run_id or not self._connection.pages:
            return ""
        return run_page(self._connection.pages, self._connection.experiment_id, self.run_id)

    @property
    def registry(self) -> Registry:
        """The model registry behind the same connection."""
        return Registry(self._connection, self._config.registered_model)

    def log_values(self, values: Mapping[str, float]) -> None:
        """Log metrics that have one value a run; an unchanged value is not logged again."""
        self._points.log_changed(values)

    def log_curves(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Log each row's values at its `step`, unless they were shown live already."""
        points = curve_points(rows)
        mark = f"hermesflow.logged.{CURVES}"
        digest = sha256(json.dumps(points).encode()).hexdigest()
        if self._tags.get(mark) == digest:
            return  # without asking for the history of every curve
        self._points.refresh()
        if self._points.log_new(points):
            self.set_tags({mark: digest})

    def log_inputs(self, tables: Sequence[InputTable]) -> None:
        """Name tables as the datasets of the run; MLflow keeps each of them once."""
        mark = "hermesflow.inputs"
        digest = sha256(repr(tables).encode()).hexdigest()
        if self._tags.get(mark) == digest:
            return

        def write(client: MlflowClient) -> bool:
            client.log_inputs(self.run_id, datasets=as_datasets(tables))
            return True

        if self._connection.attempt(write):
            self.set_tags({mark: digest})

    def log_picture(self, name: str, source: str, draw: Callable[[], bytes]) -> None:
        """Store what `draw` gives as file `name`, unless it is there from the same `source`.

        A source that goes on where this one ends is a later state of the same picture, and stays.
        """
        mark = f"hermesflow.drawn.{name}"
        if not self._connection.open or self._tags.get(mark, "").startswith(source):
            return
        place = PurePosixPath(name)
        content = draw()

        def write(client: MlflowClient) -> bool:
            with scratch() as folder:
                path = folder / place.name
                path.write_bytes(content)
                client.log_artifact(self.run_id, str(path), str(place.parent))
            return True

        if self._connection.attempt(write):
            self.set_tags({mark: source})

    def log_refs(self, refs: Mapping[str, ArtifactRef]) -> None:
        """Tag the run with the artifacts it stands for."""
        self.set_tags(
            {
                f"{name}.{field}": value
                for name, ref in refs.items()
                for field, value in (("uri", ref.uri), ("digest", ref.digest))
            }
        )

    def describe(self, text: str) -> None:
        """Set the description of the run, in Markdown."""
        self.set_tags({NOTE: text})

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

    def __exit__(self, kind: object, *_: object) -> None:
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
        self._self_play = self._self_play or _begun(run.info.start_time, name)
        self._points = MetricLog(self._connection, self.run_id, run.data.metrics)
        self._params = dict(run.data.params)
        self._tags = dict(run.data.tags)

    def _log_config(self, params: Mapping[str, str]) -> None:
        """Parameters are written once and stay; the file holds the config of the latest run."""
        document = self._config.model_dump(mode="json")
        flat = {SELF_PLAY: self._self_play, **params, **_as_texts(document)}
        if params:
            # It may differ between nested runs that can be compared, and would be what is compared.
            del flat["iterations"]
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


class Tracker(Run):
    """The run of a whole self-play; `origin` is the checkpoint that it starts from."""

    def __init__(self, connection: Connection, config: Config, origin: Origin) -> None:
        self._key, self._origin = self_play_key(config, origin), origin
        name = f"self-play {config.data.title} seed {config.seed}{origin.suffix}"
        super().__init__(connection, config, name, self._key, {})
        self._children: dict[int, str] = {}
        connection.attempt(self._choose_columns)

    @property
    def enabled(self) -> bool:
        """Whether anything is tracked; false also after MLflow was lost."""
        return self._connection.open

    def iteration(self, index: int) -> IterationRun:
        """The nested run of iteration `index`; 0 is the checkpoint that it starts from."""
        run = IterationRun(self, index)
        self._children[index] = run.run_id
        return run

    @property
    def compare_url(self) -> str:
        """Address of the page that compares the iterations so far; empty without a server."""
        runs = [run_id for _, run_id in sorted(self._children.items())]
        if not self.url or len(runs) < 2:
            return ""
        return compare_page(self._connection.pages, self._connection.experiment_id, runs)

    @property
    def runs_url(self) -> str:
        """Address of the table of all runs of the experiment; empty without a server."""
        if not self.url:
            return ""
        return runs_page(self._connection.pages, self._connection.experiment_id)

    def _choose_columns(self, client: MlflowClient) -> None:
        """Let the page of `runs_url` show what matters of this config's runs."""
        experiment = client.get_experiment(self._connection.experiment_id)
        names = [chosen.name for chosen in self._config.benchmarks]
        view = runs_view([evaluation_name(name) for name in HEADLINE], names)
        if experiment.tags.get(VIEW_TAG) != view:
            client.set_experiment_tag(experiment.experiment_id, VIEW_TAG, view)


class IterationRun(Run):
    """The run of one iteration: of its stages and of the checkpoint that they made."""

    def __init__(self, parent: Tracker, index: int) -> None:
        self._parent, self._index = parent, index
        name = f"iteration {index}" if index else parent._origin.label
        tags = {"mlflow.parentRunId": parent.run_id, "iteration": str(index)}
        key = f"{parent._key}/{index}"
        # The only parameter that differs, which makes it the other axis of MLflow's compare page.
        params = {"iteration": str(index)}
        super().__init__(
            parent._connection, parent._config, name, key, tags, params, parent._self_play
        )

    def log_metrics(self, metrics: pa.Table) -> None:
        """Log a `metrics` table; its main values also on the parent, at the iteration's step."""
        values = metric_values(metrics)
        self.log_values(values)
        names = [name for name in map(evaluation_name, HEADLINE) if name in values]
        self._parent._points.log_new([(name, values[name], self._index) for name in names])

    def log_benchmark(self, name: str, metrics: pa.Table) -> None:
        """Log a benchmark's `metrics` table: `benchmark/pope/f1`, `benchmark/pope/f1.random`."""
        rows = metrics.to_pylist()
        groups = ["" if row["group"] == ALL else f".{row['group']}" for row in rows]
        self.log_values(
            {
                f"benchmark/{name}/{row['name']}{group}": row["value"]
                for row, group in zip(rows, groups, strict=True)
            }
        )


def metric_values(metrics: pa.Table) -> dict[str, float]:
    """A `metrics` table under the names of MLflow, the headlines first.

    eval/gap, eval_quality/malformed, eval_interval/gap.low, eval_by_category/gap.counting, ...: few
    prefixes, since each becomes a section of charts, and alphabetically after the headlines.
    """
    headline: dict[str, float] = {}
    others: dict[str, float] = {}
    for row in metrics.to_pylist():
        name, (kind, _, group) = row["name"], row["group"].partition("/")
        if row["group"] != ALL:
            if group:  # records without a category, or without a composition, have none
                others[f"eval_by_{kind}/{name}.{group}"] = row["value"]
            continue
        (headline if name in HEADLINE else others)[evaluation_name(name)] = row["value"]
        others |= {f"eval_interval/{name}.{side}": row[side] for side in ("low", "high")}
    return {n: headline[n] for n in map(evaluation_name, HEADLINE) if n in headline} | others


def evaluation_name(name: str) -> str:
    """The name of a metric over all held-out records."""
    return f"{'eval' if name in HEADLINE else 'eval_quality'}/{name}"


def _begun(milliseconds: int, name: str) -> str:
    """`2026-12-01 08:30 UTC, self-play shapes seed 0`, by which self-plays are sorted."""
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M} UTC, {name}"


def _as_texts(document: Mapping[str, Any]) -> dict[str, str]:
    """Config values by dotted path, as text or else as JSON."""
    values = leaves(document).items()
    return {name: one if isinstance(one, str) else json.dumps(one) for name, one in values}


@dataclass(frozen=True)
class InputTable:
    """A table that a run reads: what it is called, what for, its artifact, schema and size."""

    name: str
    use: str
    ref: ArtifactRef
    schema: str
    rows: int


def as_datasets(tables: Sequence[InputTable]) -> list[DatasetInput]:
    """MLflow's form, with the digest of the artifact, cut to what fits, and its URI as source."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [
        DatasetInput(
            Dataset(
                name=table.name,
                digest=table.ref.digest[:DIGEST],
                source_type=urlsplit(table.ref.uri).scheme or "file",
                source=json.dumps({"uri": table.ref.uri}),
                schema=_schema(table.schema),
                profile=json.dumps({"num_rows": table.rows, "digest": table.ref.digest}),
            ),
            [InputTag(CONTEXT, table.use)],
        )
        for table in tables
    ]


def _schema(name: str) -> str:
    columns = [
        {"name": column.name, "required": True, **_kind(column.type)}
        for column in table_named(name).columns
    ]
    return json.dumps({"mlflow_colspec": columns})


def _kind(kind: pa.DataType) -> dict[str, Any]:
    """An Arrow type in the JSON of MLflow's signatures."""
    if kind == IMAGE:
        return {"type": "binary"}
    if pa.types.is_list(kind):
        return {"type": "array", "items": _kind(kind.value_type)}
    if pa.types.is_struct(kind):
        properties = {field.name: {"required": True, **_kind(field.type)} for field in kind}
        return {"type": "object", "properties": properties}
    return {"type": SCALARS[kind]}
