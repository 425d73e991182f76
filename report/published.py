"""Tables 4 and 5 of the HermesFlow paper (arXiv 2502.12148), copied: other models, other tests."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).parent / "published_results.csv"
TITLES = {
    4: "Understanding, generation and their gap",
    5: "Pair-DPO against DPO on one modality, and its iterations",
}


@dataclass(frozen=True)
class PublishedTable:
    """A table as it was printed; `rows` are texts: model, size, values in order of `columns`."""

    number: int
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def published_tables() -> list[PublishedTable]:
    """The two tables."""
    with open(FILE, encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    return [_table(number, [c for c in cells if c["table"] == str(number)]) for number in TITLES]


def _table(number: int, cells: Sequence[dict[str, str]]) -> PublishedTable:
    benchmarks = list(dict.fromkeys(cell["benchmark"] for cell in cells))
    values = {(cell["model"], cell["benchmark"]): cell["value"] for cell in cells}
    sizes = {cell["model"]: cell["params"] for cell in cells}
    return PublishedTable(
        number,
        TITLES[number],
        [name.removeprefix("gap/").removesuffix("/overall") for name in benchmarks],
        [[m, size, *(values[m, b] for b in benchmarks)] for m, size in sizes.items()],
    )
