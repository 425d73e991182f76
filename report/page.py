"""The report as one HTML file: no script, no request, every text escaped by the template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from report.alarms import FILTERS, unjudged_texts
from report.benchmarks import ALL, COUNTS, BenchmarkFigures, Interval
from report.figures import Figures, VersionFigures
from report.metrics import shown, title_of
from report.plots import group_plots, health_plots, main_plots, training_plots, trust_plots
from report.published import published_tables
from report.verdict import give_verdict, signed

TEMPLATES = Path(__file__).parent / "templates"
GAP_SCORES = ("understanding", "generation", "gap")
GROUPS = {"type/": "question type", "category/": "category", "composition/": "composition"}


@dataclass(frozen=True)
class ScoreRow:
    """A row of a table of checkpoints: title, intervals by version, None where there is none."""

    title: str
    values: Sequence[Interval | None]


@dataclass(frozen=True)
class FilterRow:
    """What the filters left of one modality of an iteration."""

    iteration: int
    modality: str
    records: int
    kept: int
    dropped: Sequence[tuple[int, str]]
    old_losers: int


@dataclass(frozen=True)
class TimeRow:
    """Seconds of a stage by version, None where it did not run."""

    title: str
    seconds: Sequence[float | None]

    @property
    def total(self) -> float:
        return sum(value for value in self.seconds if value is not None)


def render_page(figures: Figures) -> str:
    """The whole page."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "seconds": seconds, "signed": signed}
    template = environment.get_template("report.html")
    return template.render(
        figures=figures,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        verdict=give_verdict(figures),
        judge=figures.judge,
        unjudged=unjudged_texts(figures.review),
        confidence=f"{figures.run_record.config['evaluation']['confidence']:.0%}",
        scores=score_rows(figures),
        main_plots=main_plots(figures),
        group_plots=group_plots(figures),
        group_scores=list(group_rows(figures)),
        trust_plots=trust_plots(figures),
        trust_rows=list(trust_rows(figures)),
        health_plots=health_plots(figures),
        training_plots=training_plots(figures),
        filters=list(filter_rows(figures)),
        times=time_rows(figures),
        published=published_tables(figures),
        benchmarks=benchmark_rows(figures),
        benchmark_groups=list(benchmark_group_rows(figures)),
        settings=list(flatten(figures.run_record.config)),
    )


def score_rows(figures: Figures) -> list[ScoreRow]:
    """All metrics of all checkpoints, as far as the judge can tell them."""
    return [
        ScoreRow(
            title_of(metric.name),
            [version.metrics.get((metric.name, ALL)) for version in figures.versions],
        )
        for metric in shown(figures.base.metrics, ALL)
    ]


def benchmark_rows(figures: Figures) -> list[ScoreRow]:
    """The headline figure of every benchmark."""
    return [
        ScoreRow(
            found.title,
            [
                version.benchmarks[name].headline if name in version.benchmarks else None
                for version in figures.versions
            ],
        )
        for name, found in figures.last.benchmarks.items()
    ]


def benchmark_group_rows(figures: Figures) -> Iterator[tuple[BenchmarkFigures, list[ScoreRow]]]:
    """All figures of every benchmark."""
    for name, found in figures.last.benchmarks.items():
        yield (
            found,
            [
                ScoreRow(
                    f"{figure} {group.replace('_', ' ') if group != ALL else ''}".strip(),
                    [
                        version.benchmarks[name].metrics.get((figure, group))
                        if name in version.benchmarks
                        else None
                        for version in figures.versions
                    ],
                )
                for figure, group in found.metrics
                if not figure.startswith(COUNTS)
            ],
        )


def group_rows(figures: Figures) -> Iterator[tuple[str, list[ScoreRow]]]:
    """U, G and gap of every group, a table a kind of group."""
    for prefix, kind in GROUPS.items():
        rows = [
            ScoreRow(
                f"{group.replace('_', ' ')}: {title_of(name)}",
                [version.metrics.get((name, prefix + group)) for version in figures.versions],
            )
            for group in figures.base.groups(prefix)
            for name in (*GAP_SCORES, "chance")
        ]
        if rows:
            yield kind, rows


def trust_rows(figures: Figures) -> Iterator[ScoreRow]:
    """By type of question: the judge's verdict, the model's own, and how often they agree."""
    for group in figures.base.groups("type/"):
        for name in ("generation", "self_score", "agreement"):
            key = (name, f"type/{group}")
            values = [version.metrics.get(key) for version in figures.versions]
            yield ScoreRow(f"{group.replace('_', ' ')}: {title_of(name)}", values)


def filter_rows(figures: Figures) -> Iterator[FilterRow]:
    """One row for each modality of each iteration."""
    for version in figures.versions:
        for modality in ("caption", "image") if version.pairs else ():
            yield _filter_row(version, modality)


def _filter_row(version: VersionFigures, modality: str) -> FilterRow:
    pairs = version.pairs
    counts = {name: int(pairs[f"{modality}/dropped/{name}"]) for name in FILTERS}
    return FilterRow(
        version.version.iteration,
        modality,
        int(pairs["records"]),
        int(pairs[f"{modality}/kept"]),
        [
            (count, FILTERS[name][0].format(modality=modality))
            for name, count in counts.items()
            if count
        ],
        int(pairs[f"{modality}/old_losers"]),
    )


def time_rows(figures: Figures) -> list[TimeRow]:
    """Seconds that each stage took when its artifact was made."""
    taken = [{stage.title: stage.seconds for stage in v.stages} for v in figures.versions]
    # In the order of the last version, which has all stages: the first was not trained.
    titles = dict.fromkeys(title for stages in reversed(taken) for title in stages)
    return [TimeRow(title, [stages.get(title) for stages in taken]) for title in titles]


def flatten(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted paths of a config with their values as text."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{path}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield from flatten({str(i): item for i, item in enumerate(value)}, f"{path}{name}.")
        else:
            yield path + name, "null" if value is None else str(value)


def number(value: float, digits: int = 3) -> str:
    """A number with a real minus sign, and none before a zero."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def seconds(value: float) -> str:
    """`4.2 s`, `61 s`, `12 min 5 s`."""
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{int(value) // 60} min {int(value) % 60} s"
