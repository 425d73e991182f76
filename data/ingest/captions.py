"""Format `captions`: rows in JSON, JSON Lines, CSV or Parquet, with pictures in a folder.

A row names its picture by a path below the folder, or holds it as an `Image` struct (Parquet).
Several rows of one picture become one record. The format of the pool itself is among these.
"""

import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.ingest.arrow_files import open_parquet, parquet_rows
from data.ingest.json_files import count_lines, iter_lines, iter_objects
from data.ingest.places import IMAGE_SUFFIXES, NO_IMAGE, Folder, fingerprint
from data.ingest.raw import (
    NAMES,
    WHOLE,
    BadRecordError,
    Fields,
    Item,
    Load,
    PlacedRow,
    RawRecord,
    Row,
    Source,
    id_text,
    missing,
)
from data.ingest.text_files import layout_of, table_rows
from data.tables import count_rows

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
TEXT = ".txt"  # a table, where it is named or stands alone
NUMBERED = re.compile(r"(.+\.\w+)#\d+")  # a picture and which of its captions this is
NUMBER_CUT = "number of the caption cut off the name of its picture"
WHOLE_ID = "id written as 1.0 read as 1"


class CaptionFiles(Source):
    """Rows of files that share a suffix, in order."""

    def __init__(
        self, files: Sequence[Path], images: Folder, fields: Fields, encoding: str | None = None
    ) -> None:
        self._files, self._images, self._fields = list(files), images, fields
        self._encoding = encoding

    @property
    def total(self) -> int | None:
        """From footers or by counting lines; only parsing could tell that of others."""
        if self._suffix == ".parquet":
            return count_rows(self._files)
        return sum(map(count_lines, self._files)) if self._suffix == ".jsonl" else None

    def items(self, start: int) -> Iterator[Item]:
        for where, load, notes in self._fields.checked(self._rows(start), start):
            yield Item(where, partial(self._record, load, notes))

    def fingerprint(self) -> str:
        return fingerprint(self._files, None if self._holds_images() else self._images.root)

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

    def _record(self, load: Load, given: Sequence[str]) -> RawRecord:
        row, notes = load(), list(given)
        value = only_image(self._fields.get(row, "image"))
        own = self._fields.get(row, "id")
        name = value.get("path") if isinstance(value, dict) else value
        if isinstance(name, str):
            name, how = self._unnumbered(name)
            notes += how
        value = {**value, "path": name} if isinstance(value, dict) else name
        if own is not None:
            record_id = id_text(own)
            if record_id == self._numbered_id(record_id, name):
                return self._made(row, record_id, value, notes)
        if not isinstance(name, str):
            raise BadRecordError(
                "no id", f"neither an id nor the path of an image; {self._fields.lack(row, 'id')}"
            )
        held = isinstance(value, dict) and not missing(value.get("bytes"))
        record_id = name if held else self._path_id(name)
        return self._made(row, record_id, value, notes, by_path=not held)

    def _made(
        self, row: Row, record_id: str, value: object, notes: list[str], *, by_path: bool = False
    ) -> RawRecord:
        if self._is_table and WHOLE.fullmatch(record_id):
            record_id = record_id.partition(".")[0]
            notes.append(WHOLE_ID)
        image = partial(image_bytes, value, self._images, notes)
        if missing(value):
            image = partial(no_image, self._fields.lack(row, "image"))
        return self._fields.record(row, record_id, image, by_path=by_path, notes=notes)

    def _unnumbered(self, name: str) -> tuple[str, list[str]]:
        """The path of a picture without the number of a caption, unless a file is called so."""
        numbered = NUMBERED.fullmatch(name)
        if numbered is None or (self._images.root / name).is_file():
            return name, []
        return numbered[1], [NUMBER_CUT]

    @staticmethod
    def _numbered_id(record_id: str, name: object) -> str:
        """An id that is the path of its picture with the number of a caption is that path."""
        numbered = NUMBERED.fullmatch(record_id)
        return numbered[1] if numbered and isinstance(name, str) else record_id

    def _path_id(self, name: str) -> str:
        """The id of a picture without one: its path from the folder on, however it is spelled."""
        try:
            return self._images.find(name).name
        except BadRecordError:
            return name  # whoever reads the picture says what is wrong

    def _rows(self, start: int) -> Iterator[PlacedRow]:
        if self._suffix == ".parquet":
            return ((where, load, ()) for where, load in parquet_rows(self._files, start))
        others = _json_rows if self._suffix == ".json" else _line_rows
        read = self._table_rows if self._is_table else others
        return islice(chain.from_iterable(map(read, self._files)), start, None)

    def _table_rows(self, path: Path) -> Iterator[PlacedRow]:
        layout = layout_of(path, self._fields.names, tuple(IMAGE_SUFFIXES), self._encoding)
        for number, (cells, notes, surplus) in enumerate(table_rows(path, layout), 1):
            yield f"{path.name} row {number}", partial(_whole, cells, surplus), notes

    @property
    def _is_table(self) -> bool:
        return self._suffix in (".csv", ".tsv", TEXT)


def only_image(value: object) -> object:
    """The picture of a list of one; BadRecordError for several, of which nobody says which."""
    if not isinstance(value, list | tuple):
        return value
    if len(value) > 1:
        raise BadRecordError("several images", f"{len(value)} in one row; give one a row")
    return value[0] if value else None


def image_bytes(value: object, folder: Folder, notes: list[str] | None = None) -> bytes:
    """The picture that a field holds or names; BadRecordError if there is none."""
    if isinstance(value, dict):
        value = value["bytes"] if not missing(value.get("bytes")) else value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise BadRecordError(NO_IMAGE, "neither a path nor bytes")
    return folder.read(value, notes)


def no_image(detail: str) -> bytes:
    """BadRecordError that says what is in the place of a picture."""
    raise BadRecordError(NO_IMAGE, detail)


def _whole(cells: Row, surplus: str) -> Row:
    """A row of a table; BadRecordError if it has cells without a column."""
    if surplus:
        raise BadRecordError(
            "row has more cells than the table has columns",
            f"{surplus!r:.80} is in none; put texts with delimiters in quotes",
        )
    return cells


def _json_rows(path: Path) -> Iterator[PlacedRow]:
    for number, row in enumerate(iter_objects(path)):
        yield f"{path.name} object {number}", partial(dict, row), ()


def _line_rows(path: Path) -> Iterator[PlacedRow]:
    for number, line in enumerate(iter_lines(path), 1):
        yield f"{path.name} line {number}", partial(parse_line, line), ()


def parse_line(line: str) -> dict[str, Any]:
    """The object of a line of JSON; BadRecordError if it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRecordError("no valid JSON", str(error)) from None
    if not isinstance(row, dict):
        raise BadRecordError("no valid JSON", "it is no object")
    return row
