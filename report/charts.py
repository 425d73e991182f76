"""Line charts by matplotlib: as SVG within the report, and as panels of pictures for MLflow."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

LARGE, SMALL = (330, 210), (190, 140)  # width, height in points, about pixels of a phone
LEFT, TOP, BOTTOM = 44, 10, 34  # margins; the right one depends on the labels
LETTER = 6.6  # width of one in a label
LABEL_GAP = 13
MOST_POINTS = 160  # of a curve; a longer one is averaged in bins

# Those of report.css in light; in SVG each becomes the variable of its name, which follows dark.
COLORS = {
    "understanding": "#2563a8",
    "generation": "#b9540f",
    "gap": "#1d2125",
    "own": "#6a4c93",
    "bad": "#b3261e",
    "soft": "#5c646d",
    "faint": "#e4e4de",
}
# The salt makes ids, and so the bytes of a page, the same every time.
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": 11,
    "text.parse_math": False,  # names of strangers may hold dollar signs
}
ELEMENT_IDS = re.compile(r' id="[A-Za-z0-9.]+_\d+"')  # matplotlib's names, alike in all charts
# What would act on the whole page, or is the page's own to say.
FOREIGN = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>| font-family: [^;]+;", re.DOTALL)


@dataclass(frozen=True)
class Line:
    """A line with its direct label; `bars` are (low, high) of each point, or none at all."""

    label: str
    tone: str  # one of COLORS
    points: Sequence[tuple[float, float]]
    bars: Sequence[tuple[float, float]] = ()
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """Labelled places on the x axis; `marks` are drawn as vertical rules."""

    title: str
    ticks: Sequence[tuple[float, str]]
    marks: Sequence[float] = ()


def line_chart(
    name: str,
    lines: Sequence[Line],
    axis: Axis,
    *,
    span: tuple[float, float] | None = None,
    zero: bool = False,
    size: tuple[int, int] = LARGE,
) -> Markup:
    """SVG of at least one point; `span` fixes the y axis, `zero` includes 0 in it."""
    width, height = size
    longest = LETTER * max(len(line.label) for line in lines)
    right = max(width / 2, width - 6 - longest)
    with mpl.rc_context(STYLE):
        figure = Figure((width / 72, height / 72))
        box = (LEFT / width, BOTTOM / height, (right - LEFT) / width, 1 - (BOTTOM + TOP) / height)
        draw(figure.add_axes(box), lines, axis, span=span, zero=zero)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(name, buffer.getvalue())


def draw(
    axes: Axes,
    lines: Sequence[Line],
    axis: Axis,
    *,
    span: tuple[float, float] | None = None,
    zero: bool = False,
) -> None:
    """Put lines with their intervals and labels into a panel."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=COLORS["soft"])
    axes.tick_params("x", pad=7)  # away from the lowest number of the other axis
    low, high = span or value_span(lines, zero=zero)
    ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)  # enclose the range
    axes.set_yticks(ticks)
    axes.set_ylim(ticks[0], ticks[-1])
    axes.grid(axis="y", color=COLORS["faint"], linewidth=1, clip_on=False)
    if ticks[0] <= 0 <= ticks[-1]:
        axes.axhline(0, color=COLORS["soft"], linewidth=1, clip_on=False)
    for mark in axis.marks:
        axes.axvline(mark, color=COLORS["faint"], linewidth=1, linestyle=":", clip_on=False)
    axes.set_xticks([x for x, _ in axis.ticks], [text for _, text in axis.ticks])
    axes.set_xlabel(axis.title, color=COLORS["soft"])
    for line in lines:
        xs, ys = zip(*line.points, strict=True)
        color, dash = COLORS[line.tone], "--" if line.dashed else "-"
        # Nothing is clipped, since clip paths would need ids that differ from chart to chart.
        axes.plot(
            xs, ys, dash, color=color, marker="o" if line.bars else "", markersize=5,
            linewidth=2, clip_on=False,
        )  # fmt: skip
        if line.bars:
            low_ends, high_ends = zip(*line.bars, strict=True)
            axes.vlines(xs, low_ends, high_ends, color=color, linewidth=1.4, clip_on=False)
    _label_ends(axes, lines)


def _label_ends(axes: Axes, lines: Sequence[Line]) -> None:
    """Labels beside the ends of their lines, moved apart where they would overlap."""
    to_points = 72 / axes.figure.dpi
    lowest = -math.inf
    for line in sorted((one for one in lines if one.label), key=lambda one: one.points[-1][1]):
        x, y = line.points[-1]
        end = axes.transData.transform((x, y))[1] * to_points
        lowest = max(end, lowest + LABEL_GAP)
        axes.annotate(
            line.label, (1, y), (2, lowest - end), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", weight="bold", color=COLORS[line.tone],
        )  # fmt: skip


def _inline(name: str, svg: str) -> Markup:
    """The element alone, named, in the page's fonts and in colours that follow light and dark."""
    svg = FOREIGN.sub("", ELEMENT_IDS.sub("", svg[svg.index("<svg") :]))
    for tone, color in COLORS.items():
        svg = svg.replace(color, f"var(--{tone})")
    label = Markup('<svg role="img" aria-label="{}"').format(name)
    return label + Markup(svg.removeprefix("<svg"))


def value_span(lines: Sequence[Line], *, zero: bool = False) -> tuple[float, float]:
    """The range of all values and bars."""
    values = [y for line in lines for _, y in line.points]
    values += [end for line in lines for bar in line.bars for end in bar]
    values += [0.0] if zero else []
    low, high = min(values), max(values)
    if high - low < 1e-6:  # a flat line still needs an axis
        room = abs(high) * 0.05 or 0.05
        return low - room, high + room
    return low, high


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points (one at least), each the mean of a bin of consecutive ones."""
    size = math.ceil(len(points) / max(1, most))
    bins = [points[first : first + size] for first in range(0, len(points), max(size, 1))]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in bins]
