"""`results.json`: what an evaluation gave and how, in one file that needs nothing else to be read.

The recipe is all that decides about the figures: system, sampling, judges, items, files by their
hash, wording. Two results are comparable if their recipes say so (`evals/comparison.py`).
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from data.metrics import Interval

RESULTS = "results.json"
FORMAT = 1
LIBRARIES = ("hermesflow", "torch", "transformers", "diffusers", "numpy", "pillow", "httpx")
# What a document in another layout may raise where it is taken apart.
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError)
ALL = "all"
COUNTS = "items/"  # begins the names of figures that count items
LOST = ("no image", "no answer", "not drawn")
"""Statuses of items that are in no figure."""
PART = "partly answered"
"""That of items that are scored by the answers that there are, and are no pair with others."""


@dataclass(frozen=True)
class Result:
    """The result of a system at a benchmark (or `gap`): recipe, and figures by name and group."""

    folder: Path
    benchmark: str
    system: str
    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    figures: Mapping[tuple[str, str], Interval]
    number: int

    @property
    def lost(self) -> int:
        """How many items are in no figure."""
        return self._count(*LOST)

    @property
    def whole(self) -> int:
        """How many items are scored by all of their answers."""
        return self.number - self._count(*LOST, PART)

    def _count(self, *statuses: str) -> int:
        found = (self.figures.get((f"{COUNTS}{status}", ALL)) for status in statuses)
        return int(sum(one.value for one in found if one))


def results_text(
    benchmark: str,
    system: str,
    recipe: Mapping[str, object],
    rows: Sequence[Mapping[str, object]],
    number: int,
) -> str:
    """The file of a result. `rows` are those of table `metrics`, `number` is that of all items."""
    document = {
        "format": FORMAT,
        "benchmark": benchmark,
        "system": system,
        "recipe": recipe,
        "versions": versions(),
        "items": number,
        "figures": list(rows),
    }
    return json.dumps(document, indent=2, sort_keys=True, allow_nan=False, default=str) + "\n"


def versions() -> dict[str, str]:
    """Of the software that figures are made with."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def finite(value: object, low: object, high: object) -> Interval:
    """An interval of numbers; ValueError or TypeError if one of them is none."""
    ends = (value, low, high)
    if not all(isinstance(one, int | float) and math.isfinite(one) for one in ends):
        raise ValueError(f"{ends} are no numbers")
    return Interval(*(float(one) for one in ends))  # type: ignore[arg-type]


def read_result(folder: Path) -> Result:
    """The result in a folder; UserError if there is none, or one of another format."""
    path = folder / RESULTS
    if not path.is_file():
        raise UserError(
            f"{folder} has no {RESULTS}; give a folder that `hermesflow benchmark` or `gap` has "
            "written to its end"
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise UserError(
                f"{path} has format {document['format']!r}, and {FORMAT} is read here; measure it "
                "again"
            )
        figures = {
            (str(row["name"]), str(row["group"])): finite(row["value"], row["low"], row["high"])
            for row in document["figures"]
        }
        return Result(
            folder,
            str(document["benchmark"]),
            str(document["system"]),
            dict(document["recipe"]),
            dict(document["versions"]),
            figures,
            int(document["items"]),
        )
    except (*MALFORMED, RecursionError) as error:
        raise UserError(
            f"{path} is no result ({type(error).__name__}: {error}); measure it again"
        ) from None
