"""What a terminal shows while the loop runs: one live view below the lines of what is done.

    self-play shapes seed 0 · 3 iterations · iteration 2 · 1:32 so far, about 2:10 left
    sample-images  ━━━━━━━━━━━╸─────  3,120 of 5,760 records  412/s  0:06 left

    checkpoint       U      G    gap
    base          .905   .682   .223
    iteration 1   .909   .790   .119

Where there is no terminal, nothing of it is written, and the lines of `core.progress` stay.
"""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, cast

from prefect.logging.handlers import PrefectConsoleHandler
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from core.progress import bars_by
from report.benchmarks import ALL

REFRESHES = 2.0  # per second, since drawing takes time that the work needs
BAR_WIDTH = 28
FIGURES = {"understanding": "U", "generation": "G", "gap": "gap"}


class View:
    """The state that is drawn; its methods are called by the loop and by the steps of stages."""

    def __init__(self, title: str, iterations: int) -> None:
        self._title, self._iterations = title, iterations
        self._label, self._stage = "", ""
        self._bar: Bar | None = None
        self._checkpoints: list[tuple[str, dict[str, float]]] = []
        self._started = self._since = time.monotonic()
        self._ended, self._longest = 0, 0.0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw it on the terminal of stderr, if that is one, until the block ends."""
        console = Console(stderr=True)
        if not console.is_terminal or console.is_dumb_terminal:
            yield
            return
        live = Live(
            self,
            console=console,
            refresh_per_second=REFRESHES,
            transient=True,
            # Lines of others go above it. Output that goes elsewhere stays there.
            redirect_stdout=sys.stdout.isatty(),
        )
        with live, bars_by(self.bar), _prefect_above():
            yield

    def stage(self, label: str, stage: str) -> None:
        """A stage begins."""
        self._label, self._stage, self._bar = label, stage, None

    def checkpoint(self, label: str, metrics: Sequence[Mapping[str, Any]], iteration: int) -> None:
        """A checkpoint is judged, with rows of the table `metrics`; few stages are left then."""
        figures = {row["name"]: row["value"] for row in metrics if row["group"] == ALL}
        self._checkpoints.append((label, figures))
        now = time.monotonic()
        if iteration:
            self._longest = max(self._longest, now - self._since)
        self._ended, self._since = iteration, now

    def bar(self, description: str, total: int | None) -> Bar:
        """A step of the stage begins; `core.progress` calls it and moves what it returns."""
        self._bar = Bar(description, total)
        return self._bar

    def __rich__(self) -> RenderableType:
        return Group(Text(), self._head(), self._work(), Text(), self._table())

    def _head(self) -> Text:
        now = time.monotonic()
        words = [self._title, self._label, f"{_clock(now - self._started)} so far"]
        left = " · ".join(filter(None, words))
        remaining = self._remaining(now)
        return Text(left + (f", about {_clock(remaining)} left" if remaining else ""), style="bold")

    def _remaining(self, now: float) -> float:
        """Seconds, if the iterations that are left take as long as the longest one; 0: unknown."""
        left = self._iterations - self._ended
        return max(0.0, left * self._longest - (now - self._since)) if self._longest else 0.0

    def _work(self) -> RenderableType:
        bar, name = self._bar, Text(self._stage, style="cyan")
        if bar is None:
            return name
        row = Table.grid(padding=(0, 2))
        row.add_row(name, bar, Text(bar.text(self._stage), style="dim"))
        return row

    def _table(self) -> RenderableType:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("checkpoint" if self._checkpoints else "")
        if not self._checkpoints:
            return Text("the first checkpoint is judged soon", style="dim")
        for title in FIGURES.values():
            table.add_column(title, justify="right")
        for label, figures in self._checkpoints:
            table.add_row(label, *(_score(figures.get(name)) for name in FIGURES))
        return table


class Bar:
    """One step of a stage, with the members of tqdm's bars that `core.progress` uses."""

    def __init__(self, description: str, total: int | None) -> None:
        self._description, self._done = description, 0
        self.total: float | None = total
        self._started = time.monotonic()
        self._ended: float | None = None

    def update(self, amount: int) -> None:
        """Count more units as done."""
        self._done += amount

    def close(self) -> None:
        """Stay as it is until the next step begins."""
        self._ended = time.monotonic()

    def text(self, stage: str) -> str:
        """How far it is, how fast, and how long it takes; by name unless that is the stage."""
        seconds = (self._ended or time.monotonic()) - self._started
        rate = self._done / seconds if seconds > 0 else 0.0
        of = f" of {self.total:,}" if self.total else ""
        named = "" if self._description in (stage, "") else f"{self._description}: "
        words = [f"{named}{self._done:,}{of}"]
        if self._done and seconds > 1:
            words.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
            if self.total and self._ended is None:
                words.append(f"{_clock((self.total - self._done) / rate)} left")
        return "  ".join(words)

    def __rich__(self) -> ProgressBar:
        return ProgressBar(self.total or None, self._done, width=BAR_WIDTH, pulse=not self.total)


class _Above(io.TextIOBase):
    """Leads to what `sys.stderr` is now, which a console that is given it looks behind."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


@contextmanager
def _prefect_above() -> Iterator[None]:
    """Have Prefect's log lines go where `sys.stderr` leads now: they would be drawn over."""
    handlers = logging.getLogger().handlers  # Prefect's, since it has set up logging
    consoles = [one.console for one in handlers if isinstance(one, PrefectConsoleHandler)]
    before = [console.file for console in consoles]
    for console in consoles:
        console.file = cast(IO[str], _Above())
    try:
        yield
    finally:
        for console, file in zip(consoles, before, strict=True):
            console.file = file


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _score(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3f}".removeprefix("0")
