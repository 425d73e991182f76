"""SIGTERM as an exception that everything lets through, like Ctrl-C, and both held back a while.

Schedulers of shared machines send SIGTERM some time before they kill.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_TERMINATED = 143  # as a shell says of a process that SIGTERM has ended
EXIT_INTERRUPTED = 130


class Terminated(KeyboardInterrupt):
    """The process was asked to end; whoever lets Ctrl-C through lets this through."""


@contextmanager
def termination_raised() -> Iterator[None]:
    """Raise Terminated where the main thread is when SIGTERM comes, once."""
    if not _in_main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        # What unwinds now is not to be unwound by a second one.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """Hold SIGTERM and Ctrl-C back, and let the block ask whether one has come.

    It takes effect at the end of the block, as it would have outside of it. A second Ctrl-C does so
    at once.
    """
    waiting: list[int] = []
    if not _in_main_thread():
        yield lambda: False
        return

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in waiting:
            raise KeyboardInterrupt
        waiting.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(waiting)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if waiting:
        os.kill(os.getpid(), waiting[0])


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
