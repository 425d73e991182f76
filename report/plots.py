"""The charts of a report and of MLflow (as PNG): which lines stand in which of them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup
from matplotlib.figure import Figure

from report.benchmarks import ALL
from report.charts import (
    LARGE,
    MOST_POINTS,
    SMALL,
    Axis,
    Line,
    draw,
    line_chart,
    thinned,
    value_span,
)
from report.figures import Figures, VersionFigures, title_of

MODALITIES = ("caption", "image")
# Captions are what the model understands, images what it draws: one colour for each side.
TONES = {"caption": "understanding", "image": "generation"}
SHIFT = 0.02  # of the width, by which G stands beside U, so that their bars do not hide each other
# Inches, and margins as shares of the figure: computing a layout takes as long as three drawings.
GAP_SIZE, CURVE_SIZE = (10.0, 4.0), (16.0, 6.5)
GAP_MARGINS = {"left": 0.06, "right": 0.9, "bottom": 0.12, "top": 0.92, "wspace": 0.45}
CURVE_MARGINS = {
    **{"left": 0.045, "right": 0.95, "bottom": 0.08, "top": 0.94},
    **{"wspace": 0.5, "hspace": 0.3},
}
PANELS = {
    "loss": ("loss",),
    "margin, nats": ("rewards/margins",),
    "accuracy": ("rewards/accuracies",),
    "log-prob. against reference": ("logratios/chosen", "logratios/rejected"),
    "gradient norm": ("grad_norm",),
}
HEALTH = (
    (
        *("malformed", "Malformed pictures", "bad"),
        "Share of pictures that hold something which is no known shape.",
    ),
    (
        *("diversity", "Diversity of pictures", "own"),
        "Share of image tokens in which two pictures of a prompt differ.",
    ),
    (
        *("caption_similarity", "Similarity of captions", "understanding"),
        "Most likely captions against the true ones.",
    ),
)
"""Metric, title, tone and how to read it; a metric that a run lacks has no chart."""
LABELS = {"logratios/chosen": "winner", "logratios/rejected": "loser"}


@dataclass(frozen=True)
class Plot:
    """A chart with its title and, where it needs one, a sentence on how to read it."""

    title: str
    note: str
    svg: Markup


@dataclass(frozen=True)
class PlotGroup:
    """Small charts on one scale."""

    title: str
    plots: Sequence[Plot]


def main_plots(figures: Figures) -> list[Plot]:
    """U and G, their gap, and pictures without a mistake."""
    return [
        _plot(figures, "Understanding U and generation G", _both(figures, ALL)),
        _plot(figures, "Gap U − G", [_metric(figures, "gap", "", "gap")], zero=True),
        _plot(figures, title_of("all_right"), [_metric(figures, "all_right", "", "generation")]),
    ]


def group_plots(figures: Figures) -> list[PlotGroup]:
    """U and G by question type, category and composition; nothing for a lone group."""
    kinds = {
        "By question type": "type/",
        "By category of prompt": "category/",
        "By composition": "composition/",
    }
    found = {title: (prefix, figures.base.groups(prefix)) for title, prefix in kinds.items()}
    shown = {title: kind for title, kind in found.items() if len(kind[1]) > 1}
    panels = {
        (title, group): _both(figures, prefix + group)
        for title, (prefix, groups) in shown.items()
        for group in groups
    }
    if not panels:
        return []
    # One scale for all, so that panels can be compared.
    span = value_span([line for lines in panels.values() for line in lines])
    return [
        PlotGroup(
            title,
            [
                _plot(figures, name.replace("_", " "), panels[title, name], span=span, size=SMALL)
                for name in groups
            ],
        )
        for title, (_, groups) in shown.items()
    ]


def trust_plots(figures: Figures) -> list[Plot]:
    """The model's verdict on its own pictures beside the judge's, if that is somebody else's."""
    if ("agreement", ALL) not in figures.base.metrics:
        return []
    scores = [
        _metric(figures, "self_score", "own", "own"),
        _metric(figures, "generation", "judge", "generation"),
    ]
    return [
        _plot(
            figures,
            "Right answers about its pictures",
            scores,
            note="Own answers above the judge: the model flatters itself.",
        ),
        _plot(
            figures,
            "Agreement of own answers and judge",
            [_metric(figures, "agreement", "", "own")],
            note="Share of answers that both get right or both get wrong.",
        ),
    ]


def health_plots(figures: Figures) -> list[Plot]:
    """What self-play must not ruin."""
    return [
        _plot(figures, title, [_metric(figures, name, "", tone)], note=note)
        for name, title, tone, note in HEALTH
        if (name, ALL) in figures.base.metrics
    ]


def training_plots(figures: Figures) -> list[Plot]:
    """Curves over the steps of all iterations, one after the other."""
    trained = [version for version in figures.versions if version.curve]
    if not trained:
        return []
    axis, steps = _steps(trained)

    def plot(title: str, lines: Mapping[str, Line], note: str = "", zero: bool = False) -> None:
        """Add a chart of these metrics, if any was logged."""
        curves = [one for name, like in lines.items() for one in _curve(trained, steps, name, like)]
        if curves:
            plots.append(Plot(title, note, line_chart(title, curves, axis, zero=zero)))

    def both(name: str) -> dict[str, Line]:
        names = {m: _logged(trained[-1].curve, m, name) for m in MODALITIES}
        return {name: Line(f"{m}s", TONES[m], ()) for m, name in names.items()}

    plots: list[Plot] = []
    plot("Loss", both("loss"))
    plot("Accuracy: winner preferred", both("rewards/accuracies"))
    plot("Reward margin", both("rewards/margins"))
    for modality in MODALITIES:
        sides = {
            f"{modality}/logratios/chosen": Line("winners", TONES[modality], ()),
            f"{modality}/logratios/rejected": Line("losers", TONES[modality], (), dashed=True),
        }
        note = "Against the reference, nats a token: winners stay near or above 0, losers fall."
        plot(f"Log-probability of {modality}s", sides, note, zero=True)
    plot("Gradient norm, before clipping", both("grad_norm"))
    return plots


def _both(figures: Figures, group: str) -> list[Line]:
    return [
        _metric(figures, "understanding", "U", "understanding", group),
        _metric(figures, "generation", "G", "generation", group),
    ]


def _metric(figures: Figures, name: str, label: str, tone: str, group: str = ALL) -> Line:
    """A metric over iterations with its intervals."""
    shift = SHIFT * figures.last.version.iteration if name == "generation" else 0.0
    known = [
        (version.version.iteration + shift, version.metrics[name, group])
        for version in figures.versions
        if (name, group) in version.metrics
    ]
    shown = f"{label} {known[-1][1].value:.3f}".strip().replace("-", "−")
    return Line(shown, tone, [(x, i.value) for x, i in known], [(i.low, i.high) for _, i in known])


def _plot(
    figures: Figures,
    title: str,
    lines: Sequence[Line],
    *,
    note: str = "",
    span: tuple[float, float] | None = None,
    zero: bool = False,
    size: tuple[int, int] = LARGE,
) -> Plot:
    last = figures.last.version.iteration
    every = max(1, last // 6)
    ticks = [(float(k), str(k) if k else figures.base.label) for k in range(0, last + 1, every)]
    axis = Axis("iteration", ticks)
    return Plot(title, note, line_chart(title, lines, axis, span=span, zero=zero, size=size))


def _steps(trained: Sequence[VersionFigures]) -> tuple[Axis, Mapping[int, int]]:
    """The axis of all steps, and the number of steps before each iteration."""
    before: dict[int, int] = {}
    total = 0
    for version in trained:
        before[version.version.iteration] = total
        total += len(version.curve)
    ticks = [
        (before[v.version.iteration] + len(v.curve) / 2, str(v.version.iteration)) for v in trained
    ]
    return Axis("iteration, step by step", ticks, [*before.values(), total]), before


def _curve(
    trained: Sequence[VersionFigures],
    steps: Mapping[int, int],
    name: str,
    like: Line,
) -> list[Line]:
    """A line for each iteration, since the next one starts anew; the last has the label."""
    most = MOST_POINTS // len(trained)
    curves = [
        [
            (steps[version.version.iteration] + index + 0.5, row[name])
            for index, row in enumerate(version.curve)
            if name in row
        ]
        for version in trained
    ]
    lines = [replace(like, label="", points=thinned(c, most)) for c in curves if c]
    return [*lines[:-1], replace(lines[-1], label=like.label)] if lines else []


def gap_plot(versions: Sequence[VersionFigures]) -> bytes:
    """U and G with what lies between them, and the gap alone, over the checkpoints of a run."""
    figure = Figure(GAP_SIZE)
    figure.subplots_adjust(**GAP_MARGINS)
    scores, gap = figure.subplots(1, 2)
    axis = Axis("checkpoint", [(float(i), version.label) for i, version in enumerate(versions)])
    lines = [
        _over_versions(versions, name, label)
        for name, label in (("understanding", "U"), ("generation", "G"))
    ]
    draw(scores, lines, axis)
    understanding, generation = ([y for _, y in line.points] for line in lines)
    scores.fill_between(range(len(versions)), understanding, generation, color="#eaeef2")
    draw(gap, [_over_versions(versions, "gap", "")], axis, zero=True)
    scores.set_title("Share of right answers on held-out records")
    gap.set_title("Gap U − G: what self-play is to close")
    return _png(figure)


def training_plot(curve: Sequence[Mapping[str, float]]) -> bytes:
    """Loss, margins, accuracy, log-probability against the reference and gradient norm by step."""
    figure = Figure(CURVE_SIZE)
    figure.subplots_adjust(**CURVE_MARGINS)
    shown = [m for m in TONES if any(_logged(curve, m, "loss") in row for row in curve)]
    panels = figure.subplots(len(shown), len(PANELS), squeeze=False)
    axis = Axis("step", [(float(step), str(step)) for step in (1, len(curve))])
    for row, modality in zip(panels, shown, strict=True):
        for axes, (title, names) in zip(row, PANELS.items(), strict=True):
            axes.set_title(f"{modality}: {title}", fontsize=9)
            lines = [line for name in names if (line := _over_steps(curve, modality, name))]
            if lines:
                draw(axes, lines, axis)
    return _png(figure)


def _logged(curve: Sequence[Mapping[str, float]], modality: str, name: str) -> str:
    """What a curve calls a metric of a modality; all objectives have the name behind the first."""
    first = f"{modality}/{name}"
    return first if any(first in row for row in curve) else f"{name}/{modality}"


def _over_versions(versions: Sequence[VersionFigures], name: str, label: str) -> Line:
    found = [version.metrics[name, ALL] for version in versions]
    return Line(
        f"{label} {found[-1].value:.3f}".strip(),
        name,
        [(float(place), interval.value) for place, interval in enumerate(found)],
        [(interval.low, interval.high) for interval in found],
    )


def _over_steps(curve: Sequence[Mapping[str, float]], modality: str, name: str) -> Line | None:
    """One of the curves; the gradient norm is that of both modalities under one optimizer."""
    full = _logged(curve, modality, name)
    shared = name if not any(full in row for row in curve) else full
    points = [(row["step"], row[shared]) for row in curve if shared in row]
    dashed = name.endswith("rejected")
    return Line(LABELS.get(name, ""), TONES[modality], points, dashed=dashed) if points else None


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
