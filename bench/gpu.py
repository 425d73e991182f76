"""`python -m bench.gpu`: how fast the full-size Show-o trains, draws, captions and answers here.

Weights are random and nothing is read or downloaded; torch and transformers are enough, with peft
for LoRA. A part that fails says why, and the rest goes on. No measurement is begun after --minutes.
With --json what is known is written after every row, as JSON and beside it as Markdown.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.clock import Clock
from bench.measure import PARTS, Bench
from bench.report import as_json, as_markdown
from bench.synthetic import SIZES


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then print the tables."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    clock = Clock(options.device)
    bench = Bench(SIZES[options.size], clock, options.minutes)
    about = clock.hardware(), shlex.join(["python", "-m", "bench.gpu", *given])
    for _ in bench.run(options.parts):
        if options.json:
            _write(options.json, bench, about)
    print(as_markdown(bench.rows, *about))
    return 0


def _write(path: Path, bench: Bench, about: tuple[str, str]) -> None:
    path.write_text(json.dumps(as_json(bench.rows, *about), indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(as_markdown(bench.rows, *about), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the full-size model on a GPU.")
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument(
        "--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART",
        help=f"in this order, by default all: {' '.join(PARTS)}",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="file to write, beside it the same as .md")
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="no measurement is begun after so long"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


if __name__ == "__main__":
    sys.exit(main())
