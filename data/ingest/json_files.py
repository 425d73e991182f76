"""Objects of JSON files one by one, in constant memory.

Beside arrays and JSON Lines this reads what the published implementation appends to its files:
objects followed by commas, without brackets.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import UserError
from data.ingest.text_files import marked_encoding, open_text

CHUNK = 1 << 20
MAX_OBJECT = 64 << 20  # characters; what is longer is no record
_BETWEEN = re.compile(r"[\s,]*")
_OPENING = re.compile(r"\s*\[?[\s,]*")


def iter_objects(path: Path) -> Iterator[dict[str, Any]]:
    """Every object of a file, whatever stands between them; UserError names the first damage."""
    decoder, text, place, number, closed = json.JSONDecoder(), "", 0, 0, False
    for chunk in _chunks(path):
        text, between = text + chunk, _BETWEEN if number else _OPENING
        while True:
            place = _past(between, text, place)
            if place == len(text):
                break
            if closed:
                raise _damaged(path, number, "something follows the closing bracket")
            if text[place] == "]":
                place, closed = place + 1, True
                continue
            try:
                value, place = decoder.raw_decode(text, place)
            except (json.JSONDecodeError, RecursionError) as error:
                if chunk and len(text) - place < MAX_OBJECT:
                    break  # it may go on
                raise _damaged(path, number, str(error)) from None
            if not isinstance(value, dict):
                raise _damaged(path, number, f"{str(value)[:40]!r} is no object")
            number, between = number + 1, _BETWEEN
            yield value
        text, place = text[place:], 0


def _chunks(path: Path) -> Iterator[str]:
    """Pieces of a text file, an empty one at its end."""
    try:
        with open_text(path, marked_encoding(path) or "utf-8") as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    yield ""


def _past(pattern: re.Pattern[str], text: str, place: int) -> int:
    found = pattern.match(text, place)
    return found.end() if found else place


def _damaged(path: Path, number: int, what: str) -> UserError:
    return UserError(
        f"{path} is no list of JSON objects: after {number} of them, {what}; repair it there, or "
        "cut off what follows"
    )


def _not_utf8(path: Path, error: UnicodeDecodeError) -> UserError:
    return UserError(f"{path} is not UTF-8 ({error.reason}, byte {error.start}); convert it")


def iter_lines(path: Path) -> Iterator[str]:
    """Lines that are not blank; UserError if the file is not UTF-8."""
    try:
        with open_text(path, marked_encoding(path) or "utf-8") as file:
            for line in file:
                if line.strip():
                    yield line
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None


def count_lines(path: Path) -> int:
    """Number of lines that are not blank."""
    if marked_encoding(path) not in (None, "utf-8-sig"):
        return sum(1 for _ in iter_lines(path))
    with open(path, "rb") as file:
        return sum(1 for line in file if line.strip())
