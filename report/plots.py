"""The charts of a report: which lines stand in which of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from report.benchmarks import ALL
from report.charts import LARGE, MOST_POINTS, SMALL, Axis, Line, line_chart, thinned, value_span
from report.figures import Figures, VersionFigures
from report.metrics import title_of

MODALITIES = ("caption", "image")
# Captions are what the model understands, images what it draws: one colour for each side.
TONES = {"caption": "understanding", "image": "generation"}
SHIFT = 0.02  # of the width, by which G stands beside U, so that their bars do not hide each other


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
    both = [
        _metric(figures, "understanding", "U", "understanding"),
        _metric(figures, "generation", "G", "generation"),
    ]
    return [
        _plot(figures, "Understanding U and generation G", both),
        _plot(figures, "Gap U − G", [_metric(figures, "gap", "", "gap")], zero=True),
        _plot(
            figures,
            title_of("all_right"),
            [_metric(figures, "all_right", "", "generation")],
        ),
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
                _plot(
                    figures,
                    group.replace("_", " "),
                    panels[title, group],
                    span=span,
                    size=SMALL,
                )
                for group in groups
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
    plots = [
        _plot(
            figures,
            "Diversity of pictures",
            [_metric(figures, "diversity", "", "own")],
            note="Share of image tokens in which two pictures of a prompt differ.",
        ),
        _plot(
            figures,
            "Similarity of captions",
            [_metric(figures, "caption_similarity", "", "understanding")],
            note="Most likely captions against the true ones.",
        ),
    ]
    if ("malformed", ALL) in figures.base.metrics:
        malformed = [_metric(figures, "malformed", "", "bad")]
        note = "Share of pictures that hold something which is no known shape."
        plots.insert(0, _plot(figures, "Malformed pictures", malformed, note=note))
    return plots


def training_plots(figures: Figures) -> list[Plot]:
    """Curves over the steps of all iterations, one after the other."""
    trained = [version for version in figures.versions if version.curve]
    if not trained:
        return []
    axis, steps = _steps(trained)
    plots = [
        _curves(trained, steps, axis, "Loss", "loss"),
        _curves(trained, steps, axis, "Accuracy: winner preferred", "rewards/accuracies"),
        _curves(trained, steps, axis, "Reward margin", "rewards/margins"),
        *(_sides(trained, steps, axis, modality) for modality in MODALITIES),
        _curves(trained, steps, axis, "Gradient norm, before clipping", "grad_norm"),
    ]
    return [plot for plot in plots if plot is not None]


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


def _curves(
    trained: Sequence[VersionFigures],
    steps: Mapping[int, int],
    axis: Axis,
    title: str,
    name: str,
) -> Plot | None:
    """One metric of both branches."""
    lines = [
        line
        for m in MODALITIES
        for line in _curve(trained, steps, f"{m}/{name}", Line(f"{m}s", TONES[m], ()))
    ]
    return Plot(title, "", line_chart(title, lines, axis)) if lines else None


def _sides(
    trained: Sequence[VersionFigures], steps: Mapping[int, int], axis: Axis, modality: str
) -> Plot | None:
    """Winner and loser of one branch against the checkpoint before the iteration."""
    title = f"Log-probability of {modality}s"
    sides = {
        "chosen": Line("winners", TONES[modality], ()),
        "rejected": Line("losers", TONES[modality], (), dashed=True),
    }
    lines = [
        line
        for side, like in sides.items()
        for line in _curve(trained, steps, f"{modality}/logratios/{side}", like)
    ]
    if not lines:
        return None
    note = "Against the reference, nats a token: winners stay near or above 0, losers fall."
    return Plot(title, note, line_chart(title, lines, axis, zero=True))
