"""Check numbers against the published implementation: `hermesflow parity DIR [DIR ...]`.

A folder holds a small network, inputs and what the published implementation made of them: either a
Show-o network (config.json, model.safetensors, runs.json, inputs.npz, expected.npz) or a MAGVIT-v2
tokenizer (the same without runs.json). One line is printed for each case; the exit code is 1 if
any misses its limit.
"""

import json
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


def show(folders: Sequence[Path], *, full_size: bool = False) -> None:
    """Print one line for each case; UserError if any misses its limit.

    `full_size`: also the full-size tokenizer, which is slow.
    """
    missed = 0
    for folder in folders:
        for case in cases(folder, full_size=full_size):
            missed += not case.passed
            verdict = "ok  " if case.passed else "MISS"
            print(f"{verdict} {case.name:36} error {case.error:.1e}  limit {case.limit:.0e}")
    if missed:
        raise UserError(
            f"{missed} cases miss their limits; see the lines above that begin with MISS"
        )
