"""Check numbers against the published implementation: `python -m models.parity DIR [DIR ...]`.

A folder holds a small network, inputs and what the published implementation made of them: either a
Show-o network (config.json, model.safetensors, runs.json, inputs.npz, expected.npz) or a MAGVIT-v2
tokenizer (the same without runs.json). One line is printed for each case; the exit code is 1 if
any misses its limit.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from core.errors import UserError
from models.families.showo.parity import showo_cases
from models.families.showo.parity_vq import full_size_cases, magvitv2_cases
from models.parity.case import Case, existing


def cases(folder: Path, *, full_size: bool = False) -> Iterator[Case]:
    """Cases of a folder of either kind, told apart by its config.json."""
    if "encoder" not in json.loads(existing(folder / "config.json").read_text()):
        yield from showo_cases(folder)
        return
    yield from magvitv2_cases(folder)
    if full_size:
        yield from full_size_cases(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line for each case; 0 if all passed."""
    parser = argparse.ArgumentParser(prog="python -m models.parity", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument(
        "--full-size", action="store_true", help="also the full-size tokenizer (slow)"
    )
    options = parser.parse_args(arguments)
    missed = 0
    try:
        for folder in options.folders:
            for case in cases(folder, full_size=options.full_size):
                missed += not case.passed
                verdict = "ok  " if case.passed else "MISS"
                print(f"{verdict} {case.name:36} error {case.error:.1e}  limit {case.limit:.0e}")
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
