"""What every format yields: raw records, each loaded only when it is needed."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from decimal import Decimal
from functools import partial
from typing import Any, Literal, get_args

from core.errors import UserError

Row = Mapping[str, Any]
Load = Callable[[], Row]
"""Gives a row, or raises BadRecordError."""
PlacedRow = tuple[str, Load, Sequence[str]]
"""The place of a row, what gives it, and notes about it."""


class BadRecordError(Exception):
    """A record that cannot be used: a reason that many share, and what is special about it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def missing(value: object) -> bool:
    """Whether a value is none: null, or the NaN that libraries of tables put in its place."""
    if isinstance(value, float | Decimal):
        return math.isnan(value)
    return value is None


WHOLE = re.compile(r"-?[0-9]+\.0+")


def id_text(value: object) -> str:
    """An id as text; whole floats are whole numbers, as which another file may have them.

    A column of numbers with gaps becomes one of floats in many libraries of tables.
    """
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value)


@dataclass(frozen=True)
class RawRecord:
    """A record as its source has it; all but `record_id` and `image` may be of any type.

    `image` reads the encoded picture; it raises BadRecordError. `notes` says what was read
    otherwise than it stands in the source, and grows while `image` does so. `by_path` is set where
    the id is the path of the picture. `lacks` says what is wrong with a field that has no value.
    """

    record_id: str
    image: Callable[[], bytes]
    caption: object
    prompt: object = None
    references: object = None
    questions: object = None
    by_path: bool = False
    notes: list[str] = dataclass_field(default_factory=list)
    lacks: Callable[[str], str] = lambda field: ""


@dataclass(frozen=True)
class Item:
    """The place of a record in its source; `load` raises BadRecordError.

    `notes` says what was left out before it, or beside it.
    """

    where: str
    load: Callable[[], RawRecord]
    notes: Sequence[str] = ()


class Source(ABC):
    """A collection that yields the same items in the same order every time."""

    @property
    def total(self) -> int | None:
        """How many items there are, if that is known without reading them."""
        return None

    @abstractmethod
    def items(self, start: int) -> Iterator[Item]:
        """Items from number `start` on. Load each before the next one is asked for."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the source does."""


Format = Literal["captions", "webdataset", "hermesflow", "journeydb", "datasets"]
FORMATS: tuple[Format, ...] = get_args(Format)

NAMES: Mapping[str, tuple[str, ...]] = {
    "id": ("record_id", "id", "image_id", "key"),
    "image": (
        *("image", "img_path", "image_path", "file_name", "filename", "path", "img", "image_name"),
        "images",
    ),
    "caption": ("caption", "text", "captions", "description", "comment"),
    "prompt": ("prompt",),
    "references": ("references",),
    "questions": ("questions",),
}
"""Names that a field is looked for under, unless an option names another one."""


TRIES = 100  # rows, of which one at least must have what is needed of fields


class Fields:
    """Where rows of a source keep the parts of a record."""

    def __init__(self, chosen: Mapping[str, str]) -> None:
        """`chosen` maps keys of NAMES to names of fields."""
        self._chosen = dict(chosen)
        self._names = {**NAMES, **{field: (name,) for field, name in chosen.items()}}

    @property
    def names(self) -> tuple[str, ...]:
        """All names that fields are looked for under."""
        return tuple(name for names in self._names.values() for name in names)

    def get(self, row: Row, field: str) -> Any:
        """The value of a field, None if the row has none."""
        return next(
            (row[name] for name in self._names[field] if not missing(row.get(name))),
            None,
        )

    def chosen(self, row: Row, field: str) -> Any:
        """The value of a field that an option names, None if none does."""
        value = row.get(self._chosen[field]) if field in self._chosen else None
        return None if missing(value) else value

    def lack(self, row: Row, field: str) -> str:
        """Which field without a value a row has in place of one with it, and what it has."""
        there = [name for name in self._names[field] if name in row]
        known = " or ".join(self._names[field])
        empty = f"no field {known}"
        if there:
            value = row[there[0]]
            what = "null" if value is None else "NaN" if missing(value) else "blank"
            empty = f"{there[0]} is {what}"
        filled = [name for name, value in row.items() if not missing(value)]
        return f"{empty}; fields with a value: {', '.join(filled) or 'none'}"

    def problem(self, row: Row) -> str | None:
        """What a row lacks of caption, image and every field that an option names."""
        for field in sorted({"caption", "image"} | self._chosen.keys()):
            if not any(name in row for name in self._names[field]):
                return (
                    f"has no field {' or '.join(self._names[field])}; it has: {', '.join(row)}; "
                    f"name the right one with --{field}-field"
                )
        return None

    def record(
        self,
        row: Row,
        record_id: str,
        image: Callable[[], bytes],
        *,
        by_path: bool = False,
        notes: list[str] | None = None,
    ) -> RawRecord:
        """The record of a row."""
        return RawRecord(
            record_id=record_id,
            image=image,
            caption=self.get(row, "caption"),
            prompt=self.get(row, "prompt"),
            references=self.get(row, "references"),
            questions=self.get(row, "questions"),
            by_path=by_path,
            notes=[] if notes is None else notes,
            lacks=partial(self.lack, row),
        )

    def checked(self, rows: Iterable[PlacedRow], start: int) -> Iterator[PlacedRow]:
        """The rows from number `start` on; UserError if none of the first has what is needed."""
        error: str | None = None
        misses, found = 0, False
        for number, (where, load, notes) in enumerate(rows, start):
            if number < TRIES and not found:
                with suppress(BadRecordError):
                    problem = self.problem(load())
                    found, misses = problem is None, misses + 1
                    error = error or f"{where} {problem}"
                if misses >= TRIES and not found:
                    break
            yield where, load, notes
        if error is not None and not found:
            raise UserError(error)
