"""Charts as PNG, for MLflow: the gap over a self-play, and the training curves of an iteration."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from report.benchmarks import ALL
from report.charts import Axis, Line, draw
from report.plots import TONES

if TYPE_CHECKING:
    from report.figures import VersionFigures

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
LABELS = {"logratios/chosen": "winner", "logratios/rejected": "loser"}


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
    shown = [name for name in TONES if any(f"{name}/loss" in row for row in curve)]
    panels = figure.subplots(len(shown), len(PANELS), squeeze=False)
    axis = Axis("step", [(float(step), str(step)) for step in (1, len(curve))])
    for row, modality in zip(panels, shown, strict=True):
        for axes, (title, names) in zip(row, PANELS.items(), strict=True):
            axes.set_title(f"{modality}: {title}", fontsize=9)
            lines = [line for name in names if (line := _over_steps(curve, modality, name))]
            if lines:
                draw(axes, lines, axis)
    return _png(figure)


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
    full = f"{modality}/{name}"
    shared = name if not any(full in row for row in curve) else full
    points = [(row["step"], row[shared]) for row in curve if shared in row]
    dashed = name.endswith("rejected")
    return Line(LABELS.get(name, ""), TONES[modality], points, dashed=dashed) if points else None


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
