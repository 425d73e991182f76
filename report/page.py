"""The report as one HTML file: no script, no request, every text escaped by the template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from data.metrics import Interval
from data.results import COUNTS
from report.alarms import FILTERS, unjudged_texts
from report.benchmarks import ALL, BenchmarkFigures
from report.figures import Figures, shown, title_of
from report.plots import group_plots, health_plots, main_plots, training_plots, trust_plots
from report.published import published_tables
from report.verdict import give_verdict, signed

TEMPLATES = Path(__file__).parent / "templates"
GAP_SCORES = ("understanding", "generation", "gap")
GROUPS = {"type/": "question type", "category/": "category", "composition/": "composition"}


ScoreRow = tuple[str, Sequence[Interval | None]]
"""A row of a table of checkpoints: title, intervals by version, None where there is none."""


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
        trust_rows=trust_rows(figures),
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
    metrics = shown(figures.base.metrics)
    return [(title_of(metric.name), figures.across(metric.name)) for metric in metrics]


def benchmark_rows(figures: Figures) -> list[ScoreRow]:
    """The headline figure of every benchmark."""
    found = figures.last.benchmarks
    return [(one.title, figures.benchmark_across(name)) for name, one in found.items()]


def benchmark_group_rows(figures: Figures) -> Iterator[tuple[BenchmarkFigures, list[ScoreRow]]]:
    """All figures of every benchmark."""
    for name, found in figures.last.benchmarks.items():
        yield (
            found,
            [
                (
                    f"{figure} {group.replace('_', ' ') if group != ALL else ''}".strip(),
                    figures.benchmark_across(name, figure, group),
                )
                for figure, group in found.metrics
                if not figure.startswith(COUNTS)
            ],
        )


def group_rows(figures: Figures) -> Iterator[tuple[str, list[ScoreRow]]]:
    """U, G and gap of every group, a table a kind of group."""
    for prefix, kind in GROUPS.items():
        rows = _rows_of_groups(figures, prefix, (*GAP_SCORES, "chance"))
        if rows:
            yield kind, rows


def trust_rows(figures: Figures) -> list[ScoreRow]:
    """By type of question: the judge's verdict, the model's own, and how often they agree."""
    return _rows_of_groups(figures, "type/", ("generation", "self_score", "agreement"))


def _rows_of_groups(figures: Figures, prefix: str, names: Sequence[str]) -> list[ScoreRow]:
    return [
        (f"{group.replace('_', ' ')}: {title_of(name)}", figures.across(name, prefix + group))
        for group in figures.base.groups(prefix)
        for name in names
    ]


def filter_rows(figures: Figures) -> Iterator[dict[str, Any]]:
    """What the filters left of each modality of each iteration."""
    for version in figures.versions:
        pairs = version.pairs
        for modality in ("caption", "image") if pairs else ():
            counts = {name: int(pairs[f"{modality}/dropped/{name}"]) for name in FILTERS}
            yield {
                "iteration": version.version.iteration,
                "modality": modality,
                "records": int(pairs["records"]),
                "kept": int(pairs[f"{modality}/kept"]),
                "dropped": [
                    (count, FILTERS[name][0].format(modality=modality))
                    for name, count in counts.items()
                    if count
                ],
                "old_losers": int(pairs[f"{modality}/old_losers"]),
            }


def time_rows(figures: Figures) -> list[dict[str, Any]]:
    """Seconds that each stage took when its artifact was made, None where it did not run."""
    taken = [{stage.title: stage.seconds for stage in v.stages} for v in figures.versions]
    # In the order of the last version, which has all stages: the first was not trained.
    titles = dict.fromkeys(title for stages in reversed(taken) for title in stages)
    return [
        {
            "title": title,
            "seconds": [stages.get(title) for stages in taken],
            "total": sum(stages.get(title, 0.0) for stages in taken),
        }
        for title in titles
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
