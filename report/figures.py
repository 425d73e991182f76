"""All figures of a report, read from the store: plain values, so that pages only have to lay out.

Nothing is computed here that a stage has stored.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.artifact import Artifact, ArtifactRef
from core.store import Store
from data.metrics import METRICS, TITLES, Interval, Metric
from data.tables import count_rows
from report.alarms import Alarm, Changes, IterationFigures, Review, review
from report.benchmarks import ALL, BenchmarkFigures, Metrics, read_benchmark, read_metrics
from report.run_record import RunRecord, Version
from report.samples import Drawing, Sampled, read_drawings, read_sampled

CURVES = "metrics.jsonl"
COUNTED = ("questions/", "cut/")  # begin the names of what stages count


Results = Mapping[str, Any]


@dataclass(frozen=True)
class StageTime:
    """A stage's artifact and the seconds that it took when it was made."""

    title: str
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
    counts: Results
    independent: bool
    judge_reads: Mapping[str, float]

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
class JudgeFigures:
    """Who answers about drawings, and how well it reads held-out pictures.

    `accuracy` has real and reconstructed pictures, and chance; `left_out` are types of question
    that it cannot read, which are in no score.
    """

    kind: str
    name: str
    independent: bool
    why: str
    accuracy: Mapping[str, Interval]
    left_out: Sequence[str]

    @property
    def reads(self) -> str:
        """`right about .93 of ...`: its own accuracy, in the middle of a sentence."""
        real, rebuilt, chance = map(self.accuracy.__getitem__, ("real", "reconstructed", "chance"))
        left_out = f"; not asked, since it cannot read them: {', '.join(self.left_out)}"
        return (
            f"right about {real.value:.3f} [{real.low:.3f}, {real.high:.3f}] of the questions on "
            f"held-out real pictures, and {rebuilt.value:.3f} [{rebuilt.low:.3f}, "
            f"{rebuilt.high:.3f}] on what the image tokenizer makes of them (chance "
            f"{chance.value:.3f}){left_out if self.left_out else ''}"
        )


@dataclass(frozen=True)
class Figures:
    """Everything that a report shows. `changes` are paired, from the first to the last version."""

    run_record: RunRecord
    versions: Sequence[VersionFigures]
    changes: Mapping[str, Interval]
    review: Review
    judged_by: JudgeFigures
    sampled: Sequence[Sampled]
    drawings: Sequence[Drawing]
    before: Sequence[StageTime]  # pool, test, base, judge
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

    def across(self, name: str, group: str = ALL) -> list[Interval | None]:
        """A metric of every version, None where there is none."""
        return [version.metrics.get((name, group)) for version in self.versions]

    def benchmark_across(
        self, name: str, figure: str = "", group: str = ALL
    ) -> list[Interval | None]:
        """A figure of a benchmark, its headline unless another is named, as `across`."""
        found = [version.benchmarks.get(name) for version in self.versions]
        return [
            (one.metrics.get((figure, group)) if figure else one.headline) if one else None
            for one in found
        ]

    @property
    def alarms(self) -> Sequence[Alarm]:
        """What should make people look."""
        return self.review.alarms

    @property
    def judge(self) -> str:
        """Who reads generated images."""
        return self.judged_by.name

    @property
    def independent(self) -> bool:
        """Whether somebody other than a relative of the model has looked at its drawings."""
        return self.judged_by.independent

    @property
    def unjudged(self) -> str:
        """What to say of held-out records without questions; empty if there are none."""
        num = self.unjudged_records
        return f" ({num} more have no questions and are left out)" if num else ""

    @property
    def finished(self) -> bool:
        """Whether all iterations that the config asks for are there."""
        wanted: int = self.run_record.config["iterations"]
        return self.last.version.iteration >= wanted

    @property
    def state(self) -> str:
        """What has become of the run, in a sentence."""
        done, wanted = self.last.version.iteration, self.run_record.config["iterations"]
        if self.run_record.stopped:
            return f"Stopped after {done} of {wanted} iterations. {self.run_record.stopped}"
        if self.finished:
            return f"Finished: {done} of {wanted} iterations."
        return (
            f"Not finished: {done} of {wanted} iterations have ended. The run is under way, or was "
            "ended from outside; the same command continues it."
        )


def title_of(name: str) -> str:
    """A metric as it begins a line of a page: `Gap U − G`."""
    title = TITLES[name].replace(" - ", " − ")
    return title[:1].upper() + title[1:]


def shown(known: Mapping[tuple[str, str], object], group: str = ALL) -> Iterator[Metric]:
    """The metrics that there are in a group, in their order."""
    return (metric for metric in METRICS if (metric.name, group) in known)


def read_figures(
    store: Store,
    run_record: RunRecord,
    changes: Mapping[str, Interval],
    compared: Sequence[Changes] = (),
) -> Figures:
    """Read what a report needs of a run's record with at least its base.

    `compared` are the changes of each version against the first, by metric and group.
    """
    versions = [read_version(store, version, run_record) for version in run_record.versions]
    base = store.open(run_record.base)
    refs = (run_record.pool, run_record.test, run_record.base, run_record.judge)
    pool, test = (count_rows(store.open(ref).parts()) for ref in (run_record.pool, run_record.test))
    judged = count_rows([store.open(run_record.versions[0].evaluation).path("records.parquet")])
    return Figures(
        run_record=run_record,
        versions=versions,
        changes=changes,
        review=review(
            [
                for_alarms(version, compared[index] if index < len(compared) else {})
                for index, version in enumerate(versions)
            ]
        ),
        judged_by=read_judge(store, run_record),
        sampled=read_sampled(store, run_record),
        drawings=read_drawings(store, run_record),
        before=[_time(store.open(ref)) for ref in refs],
        pool_records=pool,
        test_records=judged,
        unjudged_records=test - judged,
        libraries=base.manifest["versions"],
    )


def read_version(store: Store, version: Version, run_record: RunRecord) -> VersionFigures:
    """The figures of one checkpoint of a run's record."""
    opened = {name: store.open(ref) for name, ref in version.stages.items()}
    results = {name: store.open(ref) for name, ref in version.benchmarks.items()}
    evaluation = store.open(version.evaluation)
    return VersionFigures(
        version=version,
        metrics=read_metrics(evaluation),
        pairs=opened["pairs"].manifest["results"] if "pairs" in opened else {},
        trained=opened["trained"].manifest["results"] if opened else {},
        curve=_curve(opened["trained"]) if opened else (),
        stages=[
            *(_time(artifact) for artifact in (*opened.values(), evaluation)),
            *(_time(artifact, f" {name}") for name, artifact in results.items()),
        ],
        benchmarks={
            name: read_benchmark(name, artifact, run_record.config)
            for name, artifact in results.items()
        },
        counts=_counts([evaluation, *opened.values(), *results.values()]),
        independent=bool(evaluation.manifest["results"]["independent"]),
        judge_reads=evaluation.manifest["results"]["judge_reads"],
    )


def _counts(artifacts: Sequence[Artifact]) -> dict[str, float]:
    """What stages counted of answers and of texts that were cut, over all of them."""
    sums: defaultdict[str, float] = defaultdict(float)
    for artifact in artifacts:
        for name, value in artifact.manifest["results"].items():
            if name.startswith(COUNTED) and isinstance(value, int | float):
                sums[name] += value
    return dict(sums)


def read_judge(store: Store, run_record: RunRecord) -> JudgeFigures:
    """Who judges, by what its stage has found out."""
    artifact = store.open(run_record.judge)
    results = artifact.manifest["results"]
    accuracy = read_metrics(artifact, "accuracy.parquet")
    return JudgeFigures(
        results["kind"],
        results["judge"],
        results["independent"],
        results["why"],
        {name: one for (name, group), one in accuracy.items() if group == ALL},
        results["types_left_out"],
    )


def _curve(trained: Artifact) -> list[dict[str, float]]:
    lines = trained.path(CURVES).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _time(artifact: Artifact, detail: str = "") -> StageTime:
    title = artifact.ref.stage.replace("-", " ") + detail
    return StageTime(title, artifact.ref, float(artifact.manifest["seconds"]))


def for_alarms(version: VersionFigures, changes: Changes) -> IterationFigures:
    """What alarms look at; `changes` are against the base."""
    return IterationFigures(
        version.version.iteration,
        {key: interval.value for key, interval in version.metrics.items()},
        version.pairs,
        version.trained,
        changes,
        version.counts,
        version.independent,
        version.judge_reads,
    )
