"""Line charts as inline SVG: no script, no font file, colours from the style sheet.

Hand-made, so that they follow light and dark, stay sharp when printed and are a few kB each. Their
unit is about a pixel on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

LARGE, SMALL = (330, 210), (190, 140)  # width, height
LEFT, TOP, BOTTOM = 44, 10, 34
LETTER = 6.6  # width of one in a label, for the room at the right
LABEL_GAP = 13
MOST_POINTS = 160  # of a curve; a longer one is averaged in bins


@dataclass(frozen=True)
class Line:
    """A line with its direct label; `bars` are (low, high) of each point, or none at all."""

    label: str
    tone: str  # class of the style sheet: understanding, generation, gap, ...
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
    """A chart of at least one point; `span` fixes the y axis, `zero` includes 0 in it."""
    low, high = span or value_span(lines, zero=zero)
    ticks = nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    width, height = size
    right = width - 6 - round(LETTER * max(len(line.label) for line in lines))
    xs = [x for line in lines for x, _ in line.points] + [x for x, _ in axis.ticks]
    frame = _Frame(min(xs), max(xs), low, high, right, height)
    parts = [
        *(frame.grid(tick, _tick_text(tick, ticks)) for tick in ticks),
        *(frame.rule(mark) for mark in axis.marks),
        *(frame.x_tick(x, text) for x, text in axis.ticks),
        frame.x_title(axis.title),
        *(frame.line(line) for line in lines),
        *frame.labels(lines),
    ]
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, name, Markup("").join(parts)
    )


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


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that enclose the range."""
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points (one at least), each the mean of a bin of consecutive ones."""
    size = math.ceil(len(points) / max(1, most))
    bins = [points[first : first + size] for first in range(0, len(points), max(size, 1))]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in bins]


def _tick_text(tick: float, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0]
    digits = max(0, math.ceil(-math.log10(step) - 1e-9))
    if abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
        digits += 1
    return f"{tick:.{digits}f}".replace("-", "−")


@dataclass(frozen=True)
class _Frame:
    """Places values in the drawing."""

    left: float
    right: float
    low: float
    high: float
    edge: int
    height: int

    def x(self, value: float) -> float:
        inset = 10  # so that error bars do not touch the axis
        share = (value - self.left) / ((self.right - self.left) or 1)
        return round(LEFT + inset + share * (self.edge - LEFT - 2 * inset), 1)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.height - BOTTOM - share * (self.height - BOTTOM - TOP), 1)

    def grid(self, value: float, text: str) -> Markup:
        y = self.y(value)
        kind = "zero" if value == 0 else "grid"
        return Markup(
            '<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>'
            '<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>'
        ).format(kind, LEFT, self.edge, y, y, LEFT - 5, y + 3.5, text)

    def rule(self, value: float) -> Markup:
        x = self.x(value)
        return Markup('<line class="rule" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            x, x, TOP, self.height - BOTTOM
        )

    def x_tick(self, value: float, text: str) -> Markup:
        return Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            self.x(value), self.height - BOTTOM + 14, text
        )

    def x_title(self, text: str) -> Markup:
        return Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (LEFT + self.edge) / 2, self.height - 5, text
        )

    def line(self, line: Line) -> Markup:
        path = "M" + "L".join(f"{self.x(x)},{self.y(y)}" for x, y in line.points)
        kind = f"line {line.tone}{' dashed' if line.dashed else ''}"
        parts = [Markup('<path class="{}" d="{}"/>').format(kind, path)]
        for (x, y), (low, high) in zip(line.points, line.bars, strict=bool(line.bars)):
            parts.append(
                Markup('<path class="bar {}" d="M{},{}V{}"/>').format(
                    line.tone, self.x(x), self.y(low), self.y(high)
                )
            )
            parts.append(
                Markup('<circle class="dot {}" cx="{}" cy="{}" r="3"/>').format(
                    line.tone, self.x(x), self.y(y)
                )
            )
        return Markup("").join(parts)

    def labels(self, lines: Sequence[Line]) -> list[Markup]:
        """Labels at the ends of their lines, moved apart where they would overlap."""
        named = sorted(
            (line for line in lines if line.label), key=lambda line: self.y(line.points[-1][1])
        )
        placed: list[Markup] = []
        last = -math.inf
        for line in named:
            last = max(self.y(line.points[-1][1]) + 3.5, last + LABEL_GAP)
            placed.append(
                Markup('<text class="label {}" x="{}" y="{}">{}</text>').format(
                    line.tone, self.edge + 2, last, escape(line.label)
                )
            )
        return placed
