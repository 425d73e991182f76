"""Published files of benchmarks below a local folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from core.artifact import content_digest
from core.benchmarks import BENCHMARKS, BenchmarkChoice
from core.errors import UserError
from core.files import sha256_of
from core.names import visible
from data.ingest.places import Folder
from data.ingest.raw import BadRecordError
from data.ingest.text_files import marked_encoding, open_text
from data.pictures import rgb


def find_file(folder: Path, patterns: Sequence[str], what: str) -> Path:
    """The only file below a folder that one of the glob patterns names, the first that names any.

    UserError if there is none, or several.
    """
    for pattern in patterns:
        found = sorted(visible(folder, pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"folder {folder} has {len(found)} files {pattern} ({what}), such as {found[0]} "
                f"and {found[1]}; leave the one that is meant"
            )
    raise UserError(
        f"folder {folder} has no file {' or '.join(patterns)} ({what}); give the folder with the "
        "published files of the benchmark"
    )


def read_text(path: Path) -> str:
    """A text in UTF-8, or in what its first bytes say, as editors of other systems write it."""
    with open_text(path, marked_encoding(path) or "utf-8") as file:
        return file.read()


def read_json(path: Path) -> Any:
    """The content of a JSON file; UserError where it is none."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}); fetch it again") from None


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file with one on each line; UserError names a line that is none."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                document = json.loads(line)
            except (ValueError, RecursionError) as error:  # of UTF-8, too
                raise UserError(f"{path}, line {number} is no JSON ({error})") from None
            if not isinstance(document, dict):
                raise UserError(f"{path}, line {number} is no JSON object")
            yield document


def wanted(row: dict[str, Any], fields: Sequence[str], where: str) -> list[Any]:
    """The values of fields that a row must have; UserError names the first that is missing."""
    if not isinstance(row, dict):
        raise UserError(f"{where} is {str(row)[:40]!r}, and no object")
    for field in fields:
        if field not in row:
            raise UserError(f"{where} has no field {field!r}, it has: {', '.join(row)}")
    return [row[field] for field in fields]


def published_files(chosen: BenchmarkChoice) -> dict[str, Path]:
    """The published files that a benchmark reads, by their names below its folder.

    Questions and answers; not pictures, which are read one by one.
    """
    if chosen.folder is None:
        return {}
    folder = Path(chosen.folder)
    found = {path for pattern in BENCHMARKS[chosen.name].files for path in visible(folder, pattern)}
    return {path.relative_to(folder).as_posix(): path for path in sorted(found) if path.is_file()}


def published_digest(chosen: BenchmarkChoice) -> str:
    """Names the content of a benchmark's files; empty where it has none."""
    files = published_files(chosen)
    return content_digest({name: sha256_of(path) for name, path in files.items()}) if files else ""


class ImageFolder:
    """Pictures by name, in the first of several folders that has them."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = [Folder(folder) for folder in folders if folder.is_dir()]

    def open(self, name: str) -> Image.Image:
        """An RGB picture; FileNotFoundError where no folder has it, PictureError for a damaged one.

        A name that leads out of the folders is not looked for.
        """
        for folder in self._folders:
            try:
                path = folder.find(name).path
            except BadRecordError:
                continue
            return rgb(path)
        raise FileNotFoundError(f"no picture {name}")
