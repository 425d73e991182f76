"""Ends a process whose work shows no progress, since a hang would hold a GPU for days.

Progress is what steps report anyway, so nothing needs to know of the watchdog. A process that hangs
in native code cannot be ended by an exception: it ends at once, to go on when it is started again.
"""

import faulthandler
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from core import progress

EXIT_STALLED = 75  # EX_TEMPFAIL: try again later
CHECKS = 20  # a stall, so that it is noticed at most a twentieth late


@contextmanager
def watched(what: str, stall_minutes: float | None) -> Iterator[None]:
    """End this process if nothing inside reports progress for so long; None: never."""
    if stall_minutes is None:
        yield
        return
    over = threading.Event()
    progress.beat()
    watch = threading.Thread(target=_watch, args=(what, 60 * stall_minutes, over), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _watch(what: str, seconds: float, over: threading.Event) -> None:
    while not over.wait(seconds / CHECKS):
        if progress.silence() > seconds:
            print(
                f"error: {what} has reported no progress for {seconds / 60:g} minutes "
                "(runtime.stall_minutes) and is ended; run the same command again to continue, or "
                "raise that value if single steps take so long. Where it was:",
                file=sys.stderr,
                flush=True,
            )
            faulthandler.dump_traceback(file=sys.stderr)
            os._exit(EXIT_STALLED)
