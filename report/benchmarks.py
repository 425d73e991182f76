"""What benchmarks gave for a checkpoint, as reports show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from core.artifact import Artifact
from core.benchmarks import BENCHMARKS, SELF
from data.metrics import Interval
from data.results import COUNTS, LOST
from data.tables import read_table

ALL = "all"


Metrics = Mapping[tuple[str, str], Interval]


def intervals(metrics: pa.Table) -> dict[tuple[str, str], Interval]:
    """The rows of a `metrics` table by name and group."""
    return {
        (row["name"], row["group"]): Interval(row["value"], row["low"], row["high"])
        for row in metrics.to_pylist()
    }


def read_metrics(artifact: Artifact, name: str = "metrics.parquet") -> Metrics:
    """A `metrics` table of an artifact."""
    return intervals(read_table(artifact.path(name), "metrics"))


@dataclass(frozen=True)
class BenchmarkFigures:
    """The figures of a benchmark by name and group, how many items it has, and who judges."""

    name: str
    metrics: Metrics
    items: int
    unscored: int
    judge: str
    cut: int = 0

    @property
    def title(self) -> str:
        """Name and headline figure: `pope f1`."""
        return f"{self.name} {BENCHMARKS[self.name].headline}"

    @property
    def headline(self) -> Interval:
        """The figure that stands for it."""
        return self.metrics[BENCHMARKS[self.name].headline, ALL]

    @property
    def counted(self) -> str:
        """`474 items`, and how many of them are in no figure."""
        lost = f", {self.unscored} not scored" if self.unscored else ""
        cut = f", {self.cut} with a prompt that was cut" if self.cut else ""
        return f"{self.items:,} items{lost}{cut}"


def read_benchmark(name: str, artifact: Artifact, config: Mapping[str, Any]) -> BenchmarkFigures:
    """The figures of a result; `config` is that of the run."""
    metrics = read_metrics(artifact)
    lost = (metrics.get((f"{COUNTS}{status}", ALL)) for status in LOST)
    judges = next(one["judges"] for one in config["benchmarks"] if one["name"] == name)
    named = ", ".join(
        f"{role} {who}" if who != SELF else f"{role} {who}, by its own taste"
        for role, who in judges.items()
    )
    return BenchmarkFigures(
        name,
        metrics,
        int(artifact.manifest["results"]["items"]),
        int(sum(one.value for one in lost if one)),
        named or BENCHMARKS[name].judged_by,
        int(artifact.manifest["results"]["cut/benchmark prompts"]),
    )
