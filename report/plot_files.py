"""Charts as PNG, for MLflow: the gap over a self-play, and the training curves of an iteration."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from report.figures import VersionFigures

INCHES = (10.0, 4.0)
CURVE_INCHES = (13.0, 6.5)
# Shares of the figure; a layout that is computed takes as long as three drawings.
MARGINS = {"left": 0.06, "right": 0.98, "bottom": 0.09, "top": 0.92, "wspace": 0.16}
CURVE_MARGINS = {
    **{"left": 0.045, "right": 0.985, "bottom": 0.08, "top": 0.94},
    **{"wspace": 0.3, "hspace": 0.25},
}
DOTS = 100  # an inch
COLORS = {"understanding": "#0969da", "generation": "#bc4c00", "gap": "#57606a"}
SIDES = {"chosen": "#1a7f37", "rejected": "#b35900"}
MODALITIES = ("caption", "image")


def gap_plot(versions: Sequence[VersionFigures]) -> bytes:
    """U and G with what lies between them, and the gap alone, over the checkpoints of a run."""
    figure = _figure(INCHES, MARGINS)
    scores, gap = figure.subplots(1, 2)
    labels = [version.label for version in versions]
    places = range(len(versions))
    for name, title in (("understanding", "understanding U"), ("generation", "generation G")):
        _with_intervals(scores, versions, name, title)
    values = [[v.value(name) for v in versions] for name in ("understanding", "generation")]
    scores.fill_between(places, *values, color=COLORS["gap"], alpha=0.12)
    _with_intervals(gap, versions, "gap", "gap U - G")
    for value, place in zip((v.value("gap") for v in versions), places, strict=True):
        gap.annotate(f"{value:.3f}", (place, value), (6, 6), textcoords="offset points")
    gap.axhline(0.0, color="#d0d7de", linewidth=1)
    for axes in (scores, gap):
        axes.set_xticks(places, labels)
        axes.margins(x=0.12)  # for labels and numbers at the last one
        axes.grid(axis="y", color="#eaeef2")
        axes.legend(frameon=False)
    scores.set_title("Share of right answers on held-out records")
    gap.set_title("What self-play is to close")
    return _png(figure)


def training_plot(curve: Sequence[Mapping[str, float]]) -> bytes:
    """Loss, margins, accuracy, log-probability against the reference and gradient norm by step."""
    figure = _figure(CURVE_INCHES, CURVE_MARGINS)
    shown = [name for name in MODALITIES if any(f"{name}/loss" in row for row in curve)]
    panels = figure.subplots(len(shown), 5, squeeze=False)
    for line, modality in zip(panels, shown, strict=True):
        for axes, (title, names) in zip(line, _panels(modality).items(), strict=True):
            for name, (label, color) in names.items():
                steps = [row["step"] for row in curve if name in row]
                axes.plot(steps, [row[name] for row in curve if name in row], color, label=label)
            axes.set_title(f"{modality}: {title}", fontsize=9)
            axes.grid(color="#eaeef2")
            if any(label for label, _ in names.values()):
                axes.legend(frameon=False, fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("step")
    return _png(figure)


def _panels(modality: str) -> dict[str, dict[str, tuple[str, str]]]:
    """The curves of each panel: by name, a label and a color."""
    color = COLORS["understanding" if modality == "caption" else "generation"]
    return {
        "loss": {f"{modality}/loss": ("", color)},
        "margin, nats": {f"{modality}/rewards/margins": ("", color)},
        "accuracy": {f"{modality}/rewards/accuracies": ("", color)},
        "log-prob. against reference": {
            f"{modality}/logratios/{side}": (name, SIDES[side])
            for side, name in (("chosen", "winner"), ("rejected", "loser"))
        },
        # Of both modalities together where one optimizer takes their sum.
        "gradient norm": {f"{modality}/grad_norm": ("", color), "grad_norm": ("", color)},
    }


def _with_intervals(axes: Axes, versions: Sequence[VersionFigures], name: str, title: str) -> None:
    intervals = [version.metrics[name, "all"] for version in versions]
    errors = [[i.value - i.low for i in intervals], [i.high - i.value for i in intervals]]
    axes.errorbar(
        range(len(versions)), [i.value for i in intervals], errors,
        color=COLORS[name], marker="o", capsize=4, label=title,
    )  # fmt: skip


def _figure(inches: tuple[float, float], margins: Mapping[str, float]) -> Figure:
    # Without pyplot, which keeps figures and wants a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=DOTS)
    figure.subplots_adjust(**margins)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
