"""`results.json`: what an evaluation gave and how, in one file that needs nothing else to be read.

The recipe is all that decides about the figures: system, sampling, judges, items, files by their
hash, wording. Two results are comparable if their recipes say so (`evals/comparison.py`).
"""

from __future__ import annotations

import importlib.metadata
import json
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
ALL = "all"
COUNTS = "items/"  # begins the names of figures that count items
LOST = ("no image", "no answer", "not drawn")
"""Statuses of items that are in no figure."""


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
        found = (self.figures.get((f"{COUNTS}{status}", ALL)) for status in LOST)
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
            (row["name"], row["group"]): Interval(row["value"], row["low"], row["high"])
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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is no result ({type(error).__name__}: {error}); measure it again"
        ) from None
