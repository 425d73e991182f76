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
from importlib import import_module
from pathlib import Path

from core.errors import UserError
from models.parity.case import Case, existing
from models.registry import packages


def cases(folder: Path, *, full_size: bool = False) -> Iterator[Case]:
    """Cases of a folder, by the family that knows its config.json."""
    config = json.loads(existing(folder / "config.json").read_text())
    for package in packages().values():
        found = import_module(f"{package}.parity").cases(folder, config, full_size)
        if found is not None:
            yield from found
            return
    raise UserError(f"{folder}: no family knows this config.json")


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
