"""Format `captions`: rows in JSON, JSON Lines, CSV or Parquet, with pictures in a folder.

A row names its picture by a path below the folder, or holds it as an `Image` struct (Parquet).
The format of the pool itself is among these.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from core.errors import UserError
from data.ingest.arrow_files import Load, open_parquet, parquet_rows
from data.ingest.json_files import count_lines, iter_lines, iter_objects
from data.ingest.places import NO_IMAGE, fingerprint, read_inside
from data.ingest.raw import (
    NAMES,
    TRIES,
    BadRecordError,
    FieldCheck,
    Fields,
    Item,
    RawRecord,
    Row,
)
from data.tables import count_rows

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")

Numbered = tuple[str, Load]
"""Place of a row, and what gives it or raises BadRecordError."""


class CaptionFiles:
    """Rows of files that share a suffix, in order."""

    def __init__(self, files: Sequence[Path], images: Path, fields: Fields) -> None:
        self._files, self._images, self._fields = list(files), images, fields

    @property
    def total(self) -> int | None:
        """From footers or by counting lines; only parsing could tell that of others."""
        if self._suffix == ".parquet":
            return count_rows(self._files)
        return sum(map(count_lines, self._files)) if self._suffix == ".jsonl" else None

    def items(self, start: int) -> Iterator[Item]:
        check = FieldCheck(self._fields)
        for number, (where, load) in enumerate(self._rows(start), start):
            if number < TRIES:
                with suppress(BadRecordError):
                    check.see(load(), where)
            yield Item(where, partial(self._record, load))
        check.end()

    def fingerprint(self) -> str:
        return fingerprint(self._files, None if self._holds_images() else self._images)

    def _holds_images(self) -> bool:
        if self._suffix != ".parquet":
            return False
        with open_parquet(self._files[0]) as file:
            schema = file.schema_arrow
        kinds = [schema.field(name).type for name in NAMES["image"] if name in schema.names]
        return any(pa.types.is_struct(kind) or pa.types.is_binary(kind) for kind in kinds)

    @property
    def _suffix(self) -> str:
        return self._files[0].suffix.lower()

    def _record(self, load: Callable[[], Row]) -> RawRecord:
        row = load()
        value = self._fields.get(row, "image")
        own = self._fields.get(row, "id")
        name = value.get("path") if isinstance(value, dict) else value
        if own is None and not isinstance(name, str):
            raise BadRecordError("no id", "neither an id nor the path of an image")
        record_id = str(name if own is None else own)
        return self._fields.record(row, record_id, partial(image_bytes, value, self._images))

    def _rows(self, start: int) -> Iterator[Numbered]:
        if self._suffix == ".parquet":
            return parquet_rows(self._files, start)
        read = {".json": _json_rows, ".jsonl": _line_rows, ".csv": _csv_rows}[self._suffix]
        return islice((row for file in self._files for row in read(file)), start, None)


def image_bytes(value: object, root: Path) -> bytes:
    """The picture that a field holds or names; BadRecordError if there is none."""
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise BadRecordError(NO_IMAGE, "neither a path nor bytes")
    return read_inside(root, value)


def _json_rows(path: Path) -> Iterator[Numbered]:
    for number, row in enumerate(iter_objects(path)):
        yield f"{path.name} object {number}", partial(_given, row)


def _given(row: Row) -> Row:
    return row


def _line_rows(path: Path) -> Iterator[Numbered]:
    for number, line in enumerate(iter_lines(path), 1):
        yield f"{path.name} line {number}", partial(parse_line, line)


def parse_line(line: str) -> dict[str, Any]:
    """The object of a line of JSON; BadRecordError if it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRecordError("no valid JSON", str(error)) from None
    if not isinstance(row, dict):
        raise BadRecordError("no valid JSON", "it is no object")
    return row


def _csv_rows(path: Path) -> Iterator[Numbered]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file, strict=True), 1):
                # An empty cell is no value, and surplus cells have no name.
                filled = {name: cell for name, cell in row.items() if name and cell}
                blanks = {name: None for name in row if name}
                yield f"{path.name} row {number}", partial(_given, blanks | filled)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}); convert it") from None
    except csv.Error as error:
        raise UserError(f"{path} is no valid CSV ({error}); repair it or cut it off") from None
