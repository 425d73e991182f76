"""The table at the end of a run: every score of every checkpoint with its interval, as plain text.

Wide runs are split into blocks below each other, so that lines stay within a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import fill
from typing import TypeAlias

from data.metrics import METRICS, Interval
from report.benchmarks import ALL, Metrics

WIDTH = 120
GAP = 2
BENCHMARK = "benchmark"
UNANSWERED = "unanswered"
CHANGE = "change from base"


@dataclass(frozen=True)
class Checkpoint:
    """A column: its title, the metrics of the checkpoint, and its benchmarks by title."""

    label: str
    metrics: Metrics
    benchmarks: Mapping[str, Interval] = field(default_factory=dict)


Scores: TypeAlias = Mapping[tuple[str, str], str]
Row: TypeAlias = tuple[str, tuple[str, str]]  # title, (name, group)


def final_table(
    checkpoints: Sequence[Checkpoint],
    changes: Mapping[str, Interval],
    *,
    confidence: float,
    judge: str = "",
    width: int = WIDTH,
) -> str:
    """All checkpoints side by side, the base first; `judge` is a line about who judges.

    `changes` are the paired changes from the base to the last checkpoint, by metric name; they
    make the last column.
    """
    rows = _rows([checkpoint.metrics for checkpoint in checkpoints])
    titled = dict.fromkeys(title for one in checkpoints for title in one.benchmarks)
    rows += [(title, (title, BENCHMARK)) for title in titled]
    titles = [title for title, _ in rows]
    columns = [_column(checkpoint.label, _cells(checkpoint), rows) for checkpoint in checkpoints]
    if changes and len(checkpoints) > 1:
        signed = {(name, ALL): show(change, signed=True) for name, change in changes.items()}
        columns.append(_column(CHANGE, signed, rows))
    blocks = _blocks(_column("", {}, rows, titles), columns, width)
    note = (
        f"Held-out records; in brackets {confidence:.0%} bootstrap intervals"
        f"{'; changes are paired by record' if changes and len(checkpoints) > 1 else ''}."
    )
    lines = [note, *([fill(judge, width)] if judge else [])]
    return "\n\n".join([*blocks, "\n".join(lines)])


def _rows(metrics: Sequence[Metrics]) -> list[Row]:
    """What there is to show, in its order: every metric and group of any checkpoint."""
    known = dict.fromkeys(key for one in metrics for key in one)
    # That all questions were answered is what everybody expects.
    silent = (UNANSWERED, ALL)
    if any(silent in one and one[silent].value > 0 for one in metrics):
        silent = ("", "")
    rows: list[Row] = []
    for metric in METRICS:
        if (metric.name, ALL) in known and (metric.name, ALL) != silent:
            rows.append((metric.title, (metric.name, ALL)))
        for name, group in known:
            part = group.removeprefix(metric.groups)
            if metric.groups and name == metric.name and part and part != group:
                rows.append((f"  {part.replace('_', ' ')}{metric.suffix}", (name, group)))
    return rows


def _cells(checkpoint: Checkpoint) -> Scores:
    scores = {key: show(one) for key, one in checkpoint.metrics.items()}
    return scores | {(t, BENCHMARK): show(one) for t, one in checkpoint.benchmarks.items()}


def show(interval: Interval, *, signed: bool = False) -> str:
    """`.713 [.695, .731]`: shares without the zero that nearly all start with."""
    value, low, high = (
        _number(number, signed) for number in (interval.value, interval.low, interval.high)
    )
    return f"{value} [{low}, {high}]"


def _number(number: float, signed: bool) -> str:
    """Four characters and a sign; 1 loses a digit to keep columns narrow."""
    text = f"{abs(number):.3f}"
    if text == "0.000":
        return ".000"  # without a sign, which would make it a loss
    sign = "-" if number < 0 else "+" if signed else ""
    return sign + (text[1:] if text.startswith("0.") else f"{abs(number):.2f}")


def _column(
    label: str, cells: Scores, rows: Sequence[Row], titles: Sequence[str] | None = None
) -> list[str]:
    """The lines of a column, all of the same width: label, rule and a cell for each row."""
    body = list(titles or (cells.get(at, "") for _, at in rows))
    width = max(len(line) for line in (label, *body))
    # Numbers line up on the right, titles on the left.
    return [
        line.ljust(width) if titles else line.rjust(width) for line in (label, "-" * width, *body)
    ]


def _blocks(titles: list[str], columns: Sequence[list[str]], width: int) -> Iterator[str]:
    """Lines of as many columns as fit, with the titles at the left of every block."""
    waiting = list(columns)
    while waiting:
        block, used = [titles], len(titles[0])
        while waiting and (len(block) == 1 or used + GAP + len(waiting[0][0]) <= width):
            used += GAP + len(waiting[0][0])
            block.append(waiting.pop(0))
        lines = [cells for cells in zip(*block, strict=True) if any(map(str.strip, cells[1:]))]
        yield "\n".join((" " * GAP).join(cells).rstrip() for cells in lines)
