"""`python -m bench`: the hot paths beside the straightforward way, which must give the same.

Writes performance.json and performance.md into --to. Measure on an idle machine.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.gpu import hardware, seconds_of
from bench.paths import PATHS, SCALES, agreement


@dataclass(frozen=True)
class Comparison:
    """Seconds of both sides, and the share of results that they have in common."""

    name: str
    ours: Sequence[float]
    plain: Sequence[float]
    agree: float

    @property
    def faster(self) -> float:
        """How many times as fast ours is."""
        return statistics.median(self.plain) / statistics.median(self.ours)

    @property
    def equal(self) -> bool:
        """Whether the sides agree as far as they must."""
        return self.agree >= PATHS[self.name].agree


def compare(name: str, scale: str, runs: int) -> Comparison:
    """Run both sides of a path in turns, after one run of each to warm up."""
    path = PATHS[name]
    ours, plain = path.build(SCALES[scale])
    results = [ours(), plain()]
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for side, call in zip(seconds, (ours, plain), strict=True):
            side.append(seconds_of(call, "cpu"))
    if path.check is not None:
        results = [call() for call in path.check(SCALES[scale])]
    return Comparison(name, *seconds, agreement(path, *results))


def as_markdown(about: str, scale: str, compared: Sequence[Comparison]) -> str:
    """A table, for people."""
    lines = [
        f"{about}; scale {scale}; medians, in brackets fastest and slowest",
        "",
        "| path | plain, s | ours, s | faster | equal |",
        "|---|---|---|---|---|",
    ]
    for one in compared:
        path = PATHS[one.name]
        equal = f"{one.agree:.1%}" if path.agree else "not compared"
        sides = " | ".join(
            f"{statistics.median(side):.3g} [{min(side):.3g}, {max(side):.3g}]"
            for side in (one.plain, one.ours)
        )
        lines.append(f"| {path.title} | {sides} | **{one.faster:.1f} x** | {equal} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; 1 if a side does not agree with the other."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--scale", choices=sorted(SCALES), default="mid")
    parser.add_argument("--paths", nargs="*", choices=list(PATHS), default=list(PATHS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--to", type=Path, default=Path("bench-results"))
    options = parser.parse_args(arguments)
    options.to.mkdir(parents=True, exist_ok=True)
    about = hardware("cpu")
    compared: list[Comparison] = []
    for name in options.paths:
        compared.append(compare(name, options.scale, options.runs))
        table = as_markdown(about, options.scale, compared)
        (options.to / "performance.md").write_text(table, encoding="utf-8")
        document = {
            "hardware": about,
            "scale": options.scale,
            "paths": {one.name: asdict(one) | {"faster": one.faster} for one in compared},
        }
        (options.to / "performance.json").write_text(json.dumps(document, indent=1) + "\n")
    print(as_markdown(about, options.scale, compared))
    differing = [one.name for one in compared if not one.equal]
    if differing:
        print(f"error: the sides disagree in {', '.join(differing)}", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
