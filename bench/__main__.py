"""`python -m bench`: the hot paths beside the straightforward way, and how their cost grows.

Writes performance.json, performance.md and growth.png into --to. Measure on an idle machine.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib

from bench.clock import Clock
from bench.compare import RUNS, Comparison, compare
from bench.growth import NAMES, Growth, growths
from bench.paths import PATHS, SCALES
from models.registry import use_threads

GB = 1e9


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; 1 if a side does not agree with the other."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--scale", choices=sorted(SCALES), default="mid")
    parser.add_argument("--paths", nargs="*", choices=list(PATHS), default=list(PATHS))
    parser.add_argument(
        "--growth", nargs="*", choices=NAMES, default=NAMES, metavar="NAME",
        help=f"what is measured at several sizes, by default all: {', '.join(NAMES)}",
    )  # fmt: skip
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--to", type=Path, default=Path("bench-results"))
    options = parser.parse_args(arguments)
    use_threads(0)
    hardware = Clock("cpu").hardware()
    options.to.mkdir(parents=True, exist_ok=True)
    compared: list[Comparison] = []
    grown: list[Growth] = []
    table = ""
    # All that is known after each result, so that a long run may be stopped.
    results: Iterator[Comparison | Growth] = chain(
        compare(options.paths, options.scale, options.runs),
        growths(options.growth, options.scale, SCALES),
    )
    for found in results:
        if isinstance(found, Comparison):
            compared.append(found)
        else:
            grown.append(found)
        table = _markdown(hardware, options.scale, compared, grown)
        (options.to / "performance.md").write_text(table, encoding="utf-8")
        document = _document(hardware, options.scale, compared, grown)
        (options.to / "performance.json").write_text(json.dumps(document, indent=1) + "\n")
    if grown:
        _draw(grown, options.to / "growth.png")
    print(table)
    differing = [one.name for one in compared if not one.equal]
    if differing:
        print(f"error: the sides disagree in {', '.join(differing)}", file=sys.stderr)
    return 1 if differing else 0


def _markdown(
    hardware: str, scale: str, compared: Sequence[Comparison], grown: Sequence[Growth]
) -> str:
    lines = [
        f"{hardware}; scale {scale}; medians, in brackets fastest and slowest",
        "",
        "| path | plain, s | ours, s | faster | aim | plain, peak GB | ours | leaner | aim "
        "| equal |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in compared:
        path = PATHS[one.name]
        aims = f"{path.faster:g} x", f"{path.leaner:g} x" if path.leaner else ""
        equal = f"{one.agree:.1%}" if path.agree else "not compared"
        lines.append(
            f"| {path.title} | {_spread(one.plain.seconds)} | {_spread(one.ours.seconds)} "
            f"| **{one.faster:.1f} x** | {aims[0]} | {one.plain.peak / GB:.2f} "
            f"| {one.ours.peak / GB:.2f} | {one.leaner:.1f} x | {aims[1]} | {equal} |"
        )
    if grown:
        lines += [
            "",
            "| what grows | sizes | seconds | exponent | peak GB |",
            "|---|---|---|---|---|",
        ]
    for growth in grown:
        sizes = ", ".join(f"{size:,}" for size in growth.sizes)
        seconds = ", ".join(f"{value:.3g}" for value in growth.seconds)
        peaks = ", ".join(f"{peak / GB:.2f}" for peak in growth.peaks)
        lines.append(f"| {growth.title} | {sizes} | {seconds} | {growth.exponent:.2f} | {peaks} |")
    return "\n".join(lines) + "\n"


def _spread(seconds: Sequence[float]) -> str:
    median = sorted(seconds)[len(seconds) // 2]
    if len(seconds) == 1:
        return f"{median:.3g}"
    return f"{median:.3g} [{min(seconds):.3g}, {max(seconds):.3g}]"


def _document(
    hardware: str, scale: str, compared: Sequence[Comparison], grown: Sequence[Growth]
) -> dict[str, Any]:
    return {
        "hardware": hardware,
        "scale": scale,
        "paths": {
            one.name: {
                "ours": vars(one.ours),
                "plain": vars(one.plain),
                "faster": one.faster,
                "leaner": one.leaner,
                "agree": one.agree,
            }
            for one in compared
        },
        "growth": {
            growth.title: {
                "sizes": list(growth.sizes),
                "seconds": list(growth.seconds),
                "peaks": list(growth.peaks),
                "exponent": growth.exponent,
            }
            for growth in grown
        },
    }


def _draw(grown: Sequence[Growth], path: Path) -> None:
    """Seconds against size, dotted what is linear; in red the most memory, where measured."""
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, NullLocator

    columns = 4
    rows = -(-len(grown) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(3.4 * columns, 2.7 * rows))
    for axis, growth in zip(axes.flat, grown, strict=False):
        axis.loglog(growth.sizes, growth.seconds, "o-")
        linear = growth.seconds[-1] / growth.sizes[-1]
        axis.loglog(growth.sizes, [linear * size for size in growth.sizes], ":", color="grey")
        axis.set_title(f"{growth.title}\nexponent {growth.exponent:.2f}", fontsize=9)
        axis.set_ylabel("seconds", fontsize=8)
        axis.set_xticks(growth.sizes)
        axis.xaxis.set_minor_locator(NullLocator())
        wide = max(growth.seconds) > 20 * min(growth.seconds)
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.tick_params(labelsize=7)
        if growth.peaks:
            memory = axis.twinx()
            memory.plot(growth.sizes, [peak / GB for peak in growth.peaks], "s-", color="C3")
            memory.set_ylim(0, 1.5 * max(growth.peaks) / GB)
            memory.set_ylabel("peak GB", fontsize=8, color="C3")
            memory.tick_params(labelsize=7, colors="C3")
    for axis in axes.flat[len(grown) :]:
        axis.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
