"""Which format lies at a place, and its source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.names import is_hidden
from data.ingest.captions import SUFFIXES, TEXT, CaptionFiles, parse_line
from data.ingest.hermesflow import NAME, InitialData
from data.ingest.hub import HUB_ID, HubRows
from data.ingest.journeydb import JourneyDB
from data.ingest.json_files import iter_lines, iter_objects
from data.ingest.local_copies import is_saved
from data.ingest.places import Folder
from data.ingest.raw import FORMATS, BadRecordError, Fields, Source
from data.ingest.shards import Shards

SHARDS = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class Place:
    """What the options say of a source."""

    given: str
    format: str | None = None
    images: Path | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    subset: str | None = None
    links: tuple[Path, ...] = ()
    encoding: str | None = None


def recognise(place: Place) -> str:
    """The format; UserError if nothing known lies there."""
    path = Path(place.given)
    if place.format is not None:
        return place.format
    if not path.exists():
        if HUB_ID.fullmatch(place.given):
            return "datasets"
        raise UserError(
            f"{place.given!r} does not exist (looked for {path.absolute()}); give a file or "
            "folder, or a dataset of the hub with its revision, as OWNER/NAME@COMMIT"
        )
    if path.is_dir():
        return _recognise_folder(path)
    if path.name.endswith(SHARDS):
        return "webdataset"
    if path.suffix.lower() in (*SUFFIXES, TEXT):
        return _recognise_rows(path)
    raise UserError(f"{path} is of no known format; name one with --format: {', '.join(FORMATS)}")


def open_source(place: Place) -> Source:
    """The source at a place, in the format given or recognised."""
    kind, path, fields = recognise(place), Path(place.given), Fields(place.fields)
    folder = path if path.is_dir() else path.parent
    images = place.images or folder
    for link in place.links:
        if not link.is_dir():
            raise UserError(f"--links {link} is no folder; give the one that links lead to")
    _refuse_unused(kind, place)
    if kind == "datasets":
        if not path.is_dir() and not HUB_ID.fullmatch(place.given):
            raise UserError(
                f"{place.given!r} is no folder and no dataset with its revision; give OWNER/NAME@"
                "COMMIT"
            )
        return HubRows(place.given, fields, place.split, place.subset, place.links)
    if not path.exists():
        raise UserError(f"{place.given!r} does not exist (looked for {path.absolute()})")
    if not images.is_dir():
        raise UserError(f"--images {images} is no folder; give the one that image paths start from")
    if kind == "webdataset":
        return Shards(_files(path, SHARDS), fields)
    if kind == "hermesflow":
        return InitialData(
            path / NAME if path.is_dir() else path, Folder(images, place.links), fields
        )
    if kind == "journeydb":
        beside = folder / "imgs"
        return JourneyDB(
            _only(_files(path, (".jsonl", ".json"))),
            Folder(place.images or (beside if beside.is_dir() else folder), place.links),
        )
    return CaptionFiles(_caption_files(path), Folder(images, place.links), fields, place.encoding)


def _refuse_unused(kind: str, place: Place) -> None:
    """UserError for an option that a format has no use for."""
    for option, given, kinds in (
        ("--split", place.split, ("datasets",)),
        ("--subset", place.subset, ("datasets",)),
        ("--images", place.images, ("captions", "hermesflow", "journeydb")),
        ("--encoding", place.encoding, ("captions",)),
        ("--links", place.links, tuple(kind for kind in FORMATS if kind != "webdataset")),
        ("--...-field", place.fields, tuple(kind for kind in FORMATS if kind != "journeydb")),
    ):
        if given and kind not in kinds:
            raise UserError(
                f"{option} is of no use for format {kind}, only for {', '.join(kinds)}; leave it "
                "out, or name another --format"
            )


def _recognise_folder(path: Path) -> str:
    if is_saved(path):
        return "datasets"
    if (path / NAME).is_file():
        return "hermesflow"
    if any(file.name.endswith(SHARDS) for file in _entries(path)):
        return "webdataset"
    files = _caption_files(path)
    return _recognise_rows(files[0])


def _recognise_rows(path: Path) -> str:
    """By the first object of a JSON file; other rows are captions."""
    if path.name == NAME:
        return "hermesflow"
    first: dict[str, Any] = {}
    if path.suffix.lower() == ".jsonl":
        try:
            first = next(map(parse_line, islice(iter_lines(path), 1)), {})
        except BadRecordError:
            first = {}
    elif path.suffix.lower() == ".json":
        first = next(iter_objects(path), {})
    if "img_path" in first and ({"Task2", "Task3"} & first.keys()):
        return "journeydb"
    return "hermesflow" if {"id", "img_path", "prompt", "caption"} <= first.keys() else "captions"


def hidden_files(path: Path) -> list[Path]:
    """Files of a folder that would be read if their names did not hide them."""
    if not path.is_dir():
        return []
    known = (*SUFFIXES, *SHARDS)
    return [
        one for one in sorted(path.iterdir()) if is_hidden(one.name) and one.name.endswith(known)
    ]


def _entries(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if not is_hidden(path.name)]


def _caption_files(path: Path) -> list[Path]:
    """The file of captions, or those of a folder that share their suffix."""
    if not path.is_dir():
        return [path]
    found = [file for file in _entries(path) if file.suffix.lower() in SUFFIXES]
    # A text beside each picture is no table, a single one is.
    texts = [file for file in _entries(path) if file.suffix.lower() == TEXT]
    found = found or (texts if len(texts) == 1 else [])
    suffixes = {file.suffix.lower() for file in found}
    if suffixes == {".parquet"} or len(found) == 1:
        return found
    what = f"has {', '.join(file.name for file in found[:5])}" if found else "has none of these"
    if len(texts) > 1 and not found:
        what = f"has {', '.join(file.name for file in texts[:5])}, of which none is the only table"
    raise UserError(
        f"{path} {what}; give a folder with one file of captions ({', '.join(SUFFIXES)}), several "
        "of Parquet, or tar shards; or give the file itself, and --images FOLDER if its pictures "
        "are elsewhere; `--format datasets` reads what the library datasets knows"
    )


def _files(path: Path, suffixes: Sequence[str]) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = [file for file in _entries(path) if file.name.endswith(tuple(suffixes))]
    if not found:
        raise UserError(f"{path} has no file that ends in {' or '.join(suffixes)}; give another")
    return found


def _only(files: Sequence[Path]) -> Path:
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:5])
        raise UserError(f"{files[0].parent} has {names}; give the file itself")
    return files[0]
