"""Text of strangers: which encoding a file is in, and how a table in it is written."""

import codecs
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from core.errors import UserError

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
WINDOWS = "cp1252"  # of Excel and its kin in Western Europe and America
BLOCK = 1 << 20
DELIMITERS = "\t|;,"  # the first ones are rarer within texts
# What libraries of tables write for a missing value; CSV has no types that would tell it from text.
MISSING_WORDS = frozenset(("nan", "NaN", "NAN", "-nan", "<NA>", "NaT", "null", "NULL", "None"))
MISSING_WORD = "cell that says nan or null read as empty"
Cells = dict[str, str | None]


@dataclass(frozen=True)
class Layout:
    """How a table is written: its encoding, what parts its cells, and their names."""

    encoding: str
    delimiter: str
    names: Sequence[str]
    has_header: bool


def table_encoding_of(path: Path, given: str | None = None) -> str:
    """The encoding of a table: as given or marked, UTF-8, or else that of Windows.

    UserError if it is another one.
    """
    found = given or marked_encoding(path) or "utf-8"
    problem = _undecodable(path, found)
    if problem is None:
        return found
    # With letters that are good UTF-8 beside it, a bad byte is damage.
    guessed = found == "utf-8" and given is None
    if guessed and not _has_wide(path) and _undecodable(path, WINDOWS) is None:
        return WINDOWS
    raise UserError(
        f"{path} is not {_shown(found)} ({problem}); convert it, or name its encoding with "
        "--encoding"
    )


def marked_encoding(path: Path) -> str | None:
    """What the first bytes of a file say, None if they say nothing."""
    with open(path, "rb") as file:
        start = file.read(4)
    return next((name for mark, name in MARKS if start.startswith(mark)), None)


def open_text(path: Path, encoding: str, newline: str | None = None) -> IO[str]:
    """A text file of a known encoding."""
    return open(path, encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline=newline)


def _undecodable(path: Path, encoding: str) -> str | None:
    """Why a file is not of an encoding, None if it is."""
    try:
        with open_text(path, encoding) as file:
            while file.read(BLOCK):
                pass
    except UnicodeError as error:
        where = f", byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        return f"{getattr(error, 'reason', error)}{where}"
    except LookupError:
        return "no such encoding is known"
    return None


def _has_wide(path: Path) -> bool:
    """Whether a file has characters of several bytes of UTF-8."""
    with open(path, encoding="utf-8", errors="ignore") as file:
        while text := file.read(BLOCK):
            if not text.isascii():
                return True
    return False


def _shown(encoding: str) -> str:
    return {"utf-8": "UTF-8", "utf-8-sig": "UTF-8", "utf-16": "UTF-16"}.get(encoding, encoding)


def layout_of(
    path: Path, known: Sequence[str], suffixes: tuple[str, ...], given: str | None
) -> Layout:
    """How a table is written, told by its first line.

    `known` are names of columns. A first line that begins with the name of a picture (of one of
    these suffixes) is no header: pictures and captions follow, as Flickr8k has them.
    """
    encoding = table_encoding_of(path, given)
    with open_text(path, encoding) as file:
        line = file.readline()
    splits = {delimiter: _split(line, delimiter) for delimiter in DELIMITERS}
    scores = {one: (sum(n in known for n in names), len(names)) for one, names in splits.items()}
    best = max(scores, key=lambda delimiter: scores[delimiter])
    for delimiter, (first, *rest) in splits.items():
        if rest and not scores[best][0] and first.partition("#")[0].lower().endswith(suffixes):
            return Layout(encoding, delimiter, ("image", "caption"), has_header=False)
    return Layout(encoding, best, splits[best], has_header=True)


def _split(line: str, delimiter: str) -> list[str]:
    try:
        row = next(csv.reader(io.StringIO(line), delimiter=delimiter), [])
    except csv.Error:
        return [line.strip()]
    return [name.strip() for name in row]


def table_rows(path: Path, layout: Layout) -> Iterator[tuple[Cells, list[str], str]]:
    """Rows by the names of their columns, notes, and what has no column; an empty cell is no value.

    UserError where the table is damaged.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    # Captions in such tables begin with quotes that never end.
    bare = layout.delimiter == "|" or not layout.has_header
    try:
        with open_text(path, layout.encoding, newline="") as file:
            rows = csv.reader(
                file,
                delimiter=layout.delimiter,
                strict=True,
                quoting=csv.QUOTE_NONE if bare else csv.QUOTE_MINIMAL,
            )
            if layout.has_header:
                next(rows, None)
            for row in rows:
                if row:
                    yield _cells(layout, row)
    except csv.Error as error:
        raise UserError(f"{path} is no valid CSV ({error}); repair it or cut it off") from None


def _cells(layout: Layout, row: list[str]) -> tuple[Cells, list[str], str]:
    cells: Cells = {name: None for name in layout.names if name}
    notes = [f"table read as {layout.encoding}"] if layout.encoding == WINDOWS else []
    if not layout.has_header:  # all that follows the picture is its caption
        row = [row[0], layout.delimiter.join(row[1:])]
    for name, cell in zip(layout.names, row, strict=False):
        if cell.strip() in MISSING_WORDS:
            notes.append(MISSING_WORD)
        elif name and cell.strip():
            cells[name] = cell.strip() if layout.delimiter == "|" else cell
    surplus = layout.delimiter.join(row[len(layout.names) :])
    return cells, notes, surplus.strip(layout.delimiter + " ")
