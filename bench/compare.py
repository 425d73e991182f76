"""Both sides of the hot paths, in processes of their own, in turns: A B A B."""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import numpy as np

from bench.paths import PATHS, agreement

SHORT_SECONDS = 15.0  # a first run of less is a warm-up, and its path is measured more often
RUNS = 3


@dataclass
class Measured:
    """One side: seconds of its runs, bytes held when loaded and at most."""

    seconds: list[float] = field(default_factory=list)
    loaded: int = 0
    peak: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Comparison:
    """A hot path, measured; `agree` is the share of results that the sides have in common."""

    name: str
    ours: Measured
    plain: Measured
    agree: float

    @property
    def faster(self) -> float:
        """Median time of the straightforward side over ours."""
        return self.plain.median / self.ours.median

    @property
    def leaner(self) -> float:
        """Peak memory of the straightforward process over ours."""
        return self.plain.peak / self.ours.peak

    @property
    def equal(self) -> bool:
        """Whether the sides agree as much as they must."""
        return self.agree >= PATHS[self.name].agree


def compare(names: Sequence[str], scale: str, runs: int = RUNS) -> Iterator[Comparison]:
    """Each path as soon as it is measured."""
    for name in names:
        print(f"{PATHS[name].title} ...", file=sys.stderr, flush=True)
        yield _compare(name, scale, runs)


def _compare(name: str, scale: str, runs: int) -> Comparison:
    with TemporaryDirectory(prefix="hermesflow-") as folder, ExitStack() as stack:
        sides = [
            stack.enter_context(_Process(name, side, scale, Path(folder) / f"{side}.npy"))
            for side in ("plain", "ours")
        ]
        first = [side.run() for side in sides]
        for side, seconds in zip(sides, first, strict=True):
            if seconds >= SHORT_SECONDS:
                side.measured.seconds.append(seconds)
        for _ in range(runs):
            for side, seconds in zip(sides, first, strict=True):
                if seconds < SHORT_SECONDS:
                    side.measured.seconds.append(side.run())
        results = [side.end() for side in sides]
    plain, ours = sides
    agree = agreement(PATHS[name], results[1], results[0])
    return Comparison(name, ours.measured, plain.measured, agree)


class _Process:
    """A side that waits for its turn."""

    def __init__(self, name: str, side: str, scale: str, result: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.side", name, side, scale, str(result)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._result = result
        self.measured = Measured(loaded=self._hear()["loaded"])

    def run(self) -> float:
        """Seconds that the work takes once."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return float(self._hear()["seconds"])

    def end(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """What the work gave the first time."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.measured.peak = self._hear()["peak"]
        self._process.wait()
        found: np.ndarray[Any, np.dtype[np.float64]] = np.load(self._result)
        return found

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended; what it said stands above")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def __enter__(self) -> "_Process":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
