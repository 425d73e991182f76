"""What every fuzz test asks of a reader: a value or a UserError, soon, within its folder, inertly.

`make fuzz` sets FUZZ_CASES; without it a few fixed cases of each reader run with the other tests.
"""

import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings

from core.errors import UserError
from tests.limits import HANGS_SECONDS

SHORT = 15
CASES = int(os.environ.get("FUZZ_CASES", SHORT))
MAX_GROWTH = 700 << 20  # bytes of memory that one case may add to the process
EXECUTED = "executed"  # the file that hostile code would make beside the folder
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
count = 0  # of all cases of this process


class HangError(BaseException):
    """A case that takes too long; nothing may swallow it."""


def cases(share: float = 1.0) -> settings:
    """Settings of a reader that gets this share of the usual number of cases."""
    return settings(
        max_examples=max(SHORT, int(CASES * share)),
        deadline=None,
        database=None,
        derandomize="FUZZ_CASES" not in os.environ,
        suppress_health_check=list(HealthCheck),
        # Making an example smaller takes longer than finding many others.
        phases=(Phase.explicit, Phase.generate),
    )


class _Watch:
    """Whom a case starts and what it opens to write, as Python's audit events tell."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in STARTS:
            self.seen.append(f"{event} {arguments[:2]}")
        elif event == "open" and isinstance(arguments[0], str | os.PathLike):
            path, mode, flags = os.path.abspath(arguments[0]), arguments[1], arguments[2]  # noqa: PTH100
            writes = any(c in mode for c in "wax+") if isinstance(mode, str) else flags & WRITING
            inside = path.startswith((self.folder, tempfile.gettempdir(), "/dev/null"))
            if writes and not inside and "__pycache__" not in path:
                self.seen.append(f"opened {path} to write")


@cache
def _watch() -> _Watch:
    watch = _Watch()
    sys.addaudithook(watch)  # it can not be taken away again
    return watch


@contextmanager
def folder() -> Iterator[Path]:
    """The folder of a case; what stands beside it must stay as it is."""
    global count
    count += 1
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    place = root / "given"
    place.mkdir()
    (root / "beside").write_text("untouched", encoding="utf-8")
    try:
        yield place
        assert {path.name for path in root.iterdir()} == {"given", "beside"}, "wrote outside"
        assert (root / "beside").read_text(encoding="utf-8") == "untouched"
    finally:
        shutil.rmtree(root, ignore_errors=True)


def survives(place: Path, read: Callable[[], object], *errors: type[Exception]) -> None:
    """Have `read` give a value, a UserError or one of `errors`, and nothing else happen."""
    watch = _watch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, HANGS_SECONDS)
    watch.seen, watch.folder = [], str(place)
    try:
        read()
    except (UserError, *errors):
        pass
    finally:
        watch.folder = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert not watch.seen, watch.seen
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MAX_GROWTH, f"took {grown >> 20} MiB"


def _hang(*_: object) -> None:
    raise HangError(f"more than {HANGS_SECONDS} s")
