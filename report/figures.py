"""All figures of a report, read from the store: plain values, so that pages only have to lay out.

Nothing is computed here that a stage has stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.artifact import Artifact, ArtifactRef
from core.store import Store
from data.tables import count_rows, read_table
from report.alarms import Alarm, IterationFigures, find_alarms
from report.benchmarks import ALL, BenchmarkFigures, Interval, Metrics, read_benchmark
from report.samples import Drawing, Sampled, read_drawings, read_sampled
from report.story import Story, Version

CURVES = "metrics.jsonl"


Results = Mapping[str, Any]


@dataclass(frozen=True)
class StageTime:
    """A stage's artifact and the seconds that it took when it was made."""

    name: str
    ref: ArtifactRef
    seconds: float


@dataclass(frozen=True)
class VersionFigures:
    """A checkpoint: evaluation, results of the stages that made it, its training curve."""

    version: Version
    metrics: Metrics
    pairs: Results
    trained: Results
    curve: Sequence[Mapping[str, float]]
    stages: Sequence[StageTime]
    benchmarks: Mapping[str, BenchmarkFigures]

    @property
    def label(self) -> str:
        return self.version.label

    def value(self, name: str, group: str = ALL) -> float:
        """A metric that is known to be there."""
        return self.metrics[name, group].value

    def groups(self, prefix: str) -> list[str]:
        """Sorted named groups of a kind: `category/` gives colors, counting, ..."""
        found = {group for _, group in self.metrics if group.startswith(prefix)}
        return sorted(name for group in found if (name := group.removeprefix(prefix)))


@dataclass(frozen=True)
class Figures:
    """Everything that a report shows. `changes` are paired, from the first to the last version."""

    story: Story
    versions: Sequence[VersionFigures]
    changes: Mapping[str, Interval]
    alarms: Sequence[Alarm]
    sampled: Sequence[Sampled]
    drawings: Sequence[Drawing]
    before: Sequence[StageTime]  # pool, test, base
    pool_records: int
    test_records: int  # those that were judged
    unjudged_records: int  # those without questions
    libraries: Mapping[str, str]

    @property
    def base(self) -> VersionFigures:
        return self.versions[0]

    @property
    def last(self) -> VersionFigures:
        return self.versions[-1]

    @property
    def judged_by_oracle(self) -> bool:
        """Whether generated images are read by the pixel oracle, not by a model."""
        return bool(self.story.config["evaluation"]["judge"] == "oracle")

    @property
    def judge(self) -> str:
        """Who reads generated images."""
        evaluation = self.story.config["evaluation"]
        if evaluation["judge"] == "endpoint":
            return f"the outside model {evaluation['endpoint']['model']}"
        return "the pixel oracle" if self.judged_by_oracle else "the frozen base checkpoint"

    @property
    def unjudged(self) -> str:
        """What to say of held-out records without questions; empty if there are none."""
        num = self.unjudged_records
        return f" ({num} more have no questions and are left out)" if num else ""

    @property
    def finished(self) -> bool:
        """Whether all iterations that the config asks for are there."""
        wanted: int = self.story.config["iterations"]
        return self.last.version.iteration >= wanted


def read_figures(store: Store, story: Story, changes: Mapping[str, Interval]) -> Figures:
    """Read what a report needs of a story with at least its base."""
    versions = [read_version(store, version, story) for version in story.versions]
    base = store.open(story.base)
    refs = {"pool": story.pool, "test": story.test, "base": story.base}
    pool, test = (count_rows(store.open(ref).parts()) for ref in (story.pool, story.test))
    judged = count_rows([store.open(story.versions[0].evaluation).path("records.parquet")])
    return Figures(
        story=story,
        versions=versions,
        changes=changes,
        alarms=find_alarms([for_alarms(version) for version in versions]),
        sampled=read_sampled(store, story),
        drawings=read_drawings(store, story),
        before=[_time(name, store.open(ref)) for name, ref in refs.items()],
        pool_records=pool,
        test_records=judged,
        unjudged_records=test - judged,
        libraries=base.manifest["versions"],
    )


def read_version(store: Store, version: Version, story: Story) -> VersionFigures:
    """The figures of one checkpoint of a story."""
    opened = {name: store.open(ref) for name, ref in version.stages.items()}
    results = {name: store.open(ref) for name, ref in version.benchmarks.items()}
    evaluation = store.open(version.evaluation)
    table = read_table(evaluation.path("metrics.parquet"), "metrics")
    metrics = {
        (row["name"], row["group"]): Interval(row["value"], row["low"], row["high"])
        for row in table.to_pylist()
    }
    return VersionFigures(
        version=version,
        metrics=metrics,
        pairs=opened["pairs"].manifest["results"] if opened else {},
        trained=opened["trained"].manifest["results"] if opened else {},
        curve=_curve(opened["trained"]) if opened else (),
        stages=[
            *(_time(name, artifact) for name, artifact in opened.items()),
            _time("evaluation", evaluation),
            *(_time(f"benchmark {name}", artifact) for name, artifact in results.items()),
        ],
        benchmarks={
            name: read_benchmark(name, artifact, story.config) for name, artifact in results.items()
        },
    )


def _curve(trained: Artifact) -> list[dict[str, float]]:
    lines = trained.path(CURVES).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _time(name: str, artifact: Artifact) -> StageTime:
    return StageTime(name, artifact.ref, float(artifact.manifest["seconds"]))


def for_alarms(version: VersionFigures) -> IterationFigures:
    """What alarms look at."""
    values = {key: interval.value for key, interval in version.metrics.items()}
    return IterationFigures(version.version.iteration, values, version.pairs, version.trained)
