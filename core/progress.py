"""Progress of long steps: a bar in a terminal, occasional lines elsewhere, and observers."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from tqdm import tqdm

Observer = Callable[[str, int, int], None]
ValueObserver = Callable[[Mapping[str, float]], None]


class Bar(Protocol):
    """What draws a step in a terminal."""

    total: float | None

    def update(self, amount: int) -> object:
        """Count more units as done."""

    def close(self) -> object:
        """The step has ended."""


OBSERVE_SECONDS = 1.0
_last_beat = time.monotonic()  # of the whole process
LINE_SECONDS = 15.0

# A context variable, so that steps running in several threads keep their own observers.
_observers: ContextVar[tuple[Observer, ...]] = ContextVar("observers", default=())
_value_observers: ContextVar[tuple[ValueObserver, ...]] = ContextVar("value_observers", default=())
_make_bar: ContextVar[Callable[[str, int | None], Bar] | None] = ContextVar("bars", default=None)


def beat() -> None:
    """Note that work goes on; steps do so whenever they report."""
    global _last_beat
    _last_beat = time.monotonic()


def silence() -> float:
    """Seconds since work was last known to go on."""
    return time.monotonic() - _last_beat


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Call `observer(description, done, total)` about once a second for steps begun inside."""
    token = _observers.set((*_observers.get(), observer))
    try:
        yield
    finally:
        _observers.reset(token)


@contextmanager
def bars_by(make: Callable[[str, int | None], Bar]) -> Iterator[None]:
    """Draw steps begun inside by `make(description, total)`, on a terminal or not."""
    token = _make_bar.set(make)
    try:
        yield
    finally:
        _make_bar.reset(token)


@contextmanager
def values_observed_by(observer: ValueObserver) -> Iterator[None]:
    """Call `observer(row)` for every row of figures that steps begun inside give to `values`."""
    token = _value_observers.set((*_value_observers.get(), observer))
    try:
        yield
    finally:
        _value_observers.reset(token)


class Progress:
    """One running step; use as a context manager and call `update` as work gets done."""

    def __init__(self, description: str, total: int | None) -> None:
        self.description, self.total, self.done = description, total or 0, 0
        self._known = total is not None
        beat()
        self._observers, self._value_observers = _observers.get(), _value_observers.get()
        self._started = self._observed = self._printed = time.monotonic()
        self._units_told = -1  # by the last line
        self._closed = False
        make = _make_bar.get()
        self._bar: Bar | None = None
        if make is not None:
            self._bar = make(description, total)
        elif sys.stderr.isatty():
            self._bar = tqdm(desc=description, total=total, file=sys.stderr)

    def update(self, amount: int = 1) -> None:
        """Count `amount` more units as done."""
        beat()
        self.done += amount
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(amount)
        elif now - self._printed >= LINE_SECONDS:
            self._print_line(now)
        if now - self._observed >= OBSERVE_SECONDS:
            self._observed = now
            self._notify()

    def extend(self, total: int) -> None:
        """Let `total` be the units of the step, of which some were not known before."""
        self.total = total
        if self._bar is not None:
            self._bar.total = total

    def values(self, row: Mapping[str, float]) -> None:
        """Show what was measured in a part of the work: its `step`, and figures by name."""
        for observer in self._value_observers:
            observer(row)

    def close(self) -> None:
        """Show how the step has ended; once, however often it is called."""
        if self._closed:
            return
        self._closed = True
        beat()
        if self._bar is not None:
            self._bar.close()
        elif self._units_told != self.done:
            self._print_line(time.monotonic())
        self._notify()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _notify(self) -> None:
        for observer in self._observers:
            observer(self.description, self.done, self.total)

    def _print_line(self, now: float) -> None:
        self._printed, self._units_told = now, self.done
        seconds = now - self._started
        of = f"/{self.total}" if self._known else ""
        print(
            f"{self.description}: {self.done}{of} after {seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )


class Silent(Progress):
    """A step that another process shows."""

    def __init__(self, description: str, total: int) -> None:
        self.description, self.total, self.done = description, total, 0
        beat()

    def update(self, amount: int = 1) -> None:
        beat()
        self.done += amount

    def values(self, row: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def progress(description: str, total: int | None) -> Progress:
    """Start showing a step of `total` units; None: nobody knows, and observers get 0."""
    return Progress(description, total)
