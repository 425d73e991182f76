"""The report as one HTML file: no script, no request, every text escaped by the template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from report.alarms import FILTERS
from report.benchmarks import ALL, COUNTS, BenchmarkFigures, Interval
from report.figures import Figures, VersionFigures
from report.plots import group_plots, health_plots, main_plots, training_plots, trust_plots
from report.published import published_tables
from report.verdict import give_verdict, signed

TEMPLATES = Path(__file__).parent / "templates"
# Metric, title; the rows of the table of all checkpoints.
SCORES = (
    ("understanding", "Understanding U"),
    ("generation", "Generation G"),
    ("gap", "Gap U − G"),
    ("all_right", "Pictures with nothing wrong"),
    ("self_score", "G by its own answers"),
    ("agreement", "Own answers agree with judge"),
    ("malformed", "Malformed pictures"),
    ("diversity", "Diversity of pictures"),
    ("caption_similarity", "Similarity of captions"),
)
GROUPS = {"type/": "question type", "category/": "category", "composition/": "composition"}
STAGES = {
    "captions": "sample captions",
    "images": "sample images",
    "caption_scores": "score captions",
    "image_scores": "score images",
    "pairs": "pair",
    "reference": "reference",
    "trained": "train",
    "evaluation": "evaluate",
}


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
        confidence=f"{figures.story.config['evaluation']['confidence']:.0%}",
        scores=score_rows(figures),
        main_plots=main_plots(figures),
        group_plots=group_plots(figures),
        group_scores=list(group_rows(figures)),
        trust_plots=trust_plots(figures),
        health_plots=health_plots(figures),
        training_plots=training_plots(figures),
        filters=list(filter_rows(figures)),
        times=time_rows(figures),
        published=published_tables(figures),
        benchmarks=benchmark_rows(figures),
        benchmark_groups=list(benchmark_group_rows(figures)),
        settings=list(flatten(figures.story.config)),
    )


def score_rows(figures: Figures) -> list[ScoreRow]:
    """All metrics of all checkpoints; malformed only where the judge can tell."""
    return [
        ScoreRow(title, [version.metrics.get((name, ALL)) for version in figures.versions])
        for name, title in SCORES
        if name != "malformed" or figures.judged_by_oracle
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
                f"{group.replace('_', ' ')}: {title}",
                [version.metrics.get((name, prefix + group)) for version in figures.versions],
            )
            for group in figures.base.groups(prefix)
            for name, title in SCORES[:3]
        ]
        if rows:
            yield kind, rows


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
    taken = [{stage.name: stage.seconds for stage in v.stages} for v in figures.versions]
    done = list(dict.fromkeys(name for stages in taken for name in stages))
    # Benchmarks are not among the names, and come last.
    known = [name for name in STAGES if name in done] + [n for n in done if n not in STAGES]
    return [
        TimeRow(STAGES.get(name, name), [stages.get(name) for stages in taken]) for name in known
    ]


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
