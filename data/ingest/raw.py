"""What every format yields: raw records, each loaded only when it is needed."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from core.errors import UserError

Row = Mapping[str, Any]


class BadRecordError(Exception):
    """A record that cannot be used: a reason that many share, and what is special about it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class RawRecord:
    """A record as its source has it; all but `record_id` and `image` may be of any type.

    `image` reads the encoded picture; it raises BadRecordError.
    """

    record_id: str
    image: Callable[[], bytes]
    caption: object
    prompt: object = None
    references: object = None
    questions: object = None


@dataclass(frozen=True)
class Item:
    """The place of a record in its source; `load` raises BadRecordError."""

    where: str
    load: Callable[[], RawRecord]


class Source(Protocol):
    """A collection that yields the same items in the same order every time."""

    @property
    def total(self) -> int | None:
        """How many items there are, if that is known without reading them."""
        ...

    def items(self, start: int) -> Iterator[Item]:
        """Items from number `start` on. Load each before the next one is asked for."""
        ...

    def fingerprint(self) -> str:
        """Changes when the source does."""
        ...


NAMES: Mapping[str, tuple[str, ...]] = {
    "id": ("record_id", "id", "image_id", "key"),
    "image": ("image", "img_path", "image_path", "file_name", "filename", "path", "img"),
    "caption": ("caption", "text", "captions", "description"),
    "prompt": ("prompt",),
    "references": ("references",),
    "questions": ("questions",),
}
"""Names that a field is looked for under, unless an option names another one."""


TRIES = 100


class FieldCheck:
    """Whether fields are named right, judged by the first rows: one that has all is enough."""

    def __init__(self, fields: "Fields") -> None:
        self._fields = fields
        self._error: str | None = None
        self._misses, self._found = 0, False

    def see(self, row: Row, where: str) -> None:
        """Take a row into account; UserError if none of TRIES has what it needs."""
        if self._found:
            return
        problem = self._fields.problem(row)
        self._found = problem is None
        if problem is not None:
            self._error = self._error or f"{where} {problem}"
            self._misses += 1
            if self._misses >= TRIES:
                self.end()

    def end(self) -> None:
        """UserError if rows were seen and none of them has what it needs."""
        if self._error is not None and not self._found:
            raise UserError(self._error)


class Fields:
    """Where rows of a source keep the parts of a record."""

    def __init__(self, chosen: Mapping[str, str]) -> None:
        """`chosen` maps keys of NAMES to names of fields."""
        self._chosen = dict(chosen)
        self._names = {**NAMES, **{field: (name,) for field, name in chosen.items()}}

    def get(self, row: Row, field: str) -> Any:
        """The value of a field, None if the row has none."""
        return next(
            (row[name] for name in self._names[field] if row.get(name) is not None),
            None,
        )

    def chosen(self, row: Row, field: str) -> Any:
        """The value of a field that an option names, None if none does."""
        return row.get(self._chosen[field]) if field in self._chosen else None

    def problem(self, row: Row) -> str | None:
        """What a row lacks of caption, image and every field that an option names."""
        for field in sorted({"caption", "image"} | self._chosen.keys()):
            if not any(name in row for name in self._names[field]):
                return (
                    f"has no field {' or '.join(self._names[field])}; it has: {', '.join(row)}; "
                    f"name the right one with --{field}-field"
                )
        return None

    def record(self, row: Row, record_id: str, image: Callable[[], bytes]) -> RawRecord:
        """The record of a row."""
        return RawRecord(
            record_id=record_id,
            image=image,
            caption=self.get(row, "caption"),
            prompt=self.get(row, "prompt"),
            references=self.get(row, "references"),
            questions=self.get(row, "questions"),
        )
