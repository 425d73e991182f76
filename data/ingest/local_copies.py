"""Local copies of data sets: what a folder of strangers may have the library datasets do.

Folders of `save_to_disk` and Parquet and Arrow files of a repository are read here. The library
gets the rest, once what steers it is known to stay within the folder: README.md and its kin may
name files anywhere, those of the network too.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from datasets import DatasetBuilder, IterableDataset
from datasets.packaged_modules.arrow.arrow import Arrow
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from core.aliases import check_aliases
from core.errors import UserError
from core.names import is_hidden
from data.ingest.arrow_files import Load, arrow_rows, count_arrow_rows, parquet_rows
from data.ingest.json_files import iter_lines, iter_objects
from data.ingest.places import IMAGE_SUFFIXES, Folder, check_name
from data.ingest.raw import BadRecordError, Row
from data.tables import count_rows

SPLITS, STATE = "dataset_dict.json", "state.json"  # in a folder of `save_to_disk`
CARDS = ("README.md", ".huggingface.yaml")
INFOS = "dataset_infos.json"
MAX_BYTES = 16 << 20  # of a file that describes a data set
MAX_DEPTH = 64  # of folders, and of lists and objects in JSON
MAX_WILDCARDS = 4  # of a pattern; how long matching takes grows with a power of them
# What steers the reading of files in a way that can only fail.
CONFIG_FIELDS = frozenset(
    [
        *("config_name", "data_files", "data_dir", "default", "version", "description"),
        *("features", "drop_labels", "drop_metadata", "sep", "delimiter", "quotechar", "quoting"),
        *("header", "names", "column_names", "skiprows", "columns"),
    ]
)
COMPRESSED = (
    *(b"PK\3\4", b"PK\5\6", b"PK\7\x08", b"BZh", b"\x1f\x8b", b"\xfd7zXZ\0"),
    *(b"\x04\x22\x4d\x18", b"\x28\xb5\x2f\xfd"),  # LZ4, Zstandard
)
_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
_MARK = re.compile(r"[\[\]{}]|[^\[\]{}\s]+")  # a bracket, or what stands between some


@dataclass(frozen=True)
class Split:
    """`rows` gives all from a number on; `total` is their number where it is known."""

    rows: Callable[[int], Iterator[Load]]
    total: int | None


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` made a folder."""
    return any((folder / name).is_file() for name in (SPLITS, STATE))


def saved_splits(place: Folder) -> dict[str, Split]:
    """Splits of a folder of `save_to_disk`."""
    folder = place.root
    if (folder / STATE).is_file():
        state = _json(place, folder / STATE)
        return {str(state.get("_split") or "train"): _saved_split(place, folder, state)}
    names = _json(place, folder / SPLITS).get("splits")
    if not isinstance(names, list) or not all(_is_plain(name) for name in names):
        raise UserError(
            f"{folder / SPLITS}: splits = {names!r:.80}; it must list folders beside it"
        )
    return {
        name: _saved_split(place, folder / name, _json(place, folder / name / STATE))
        for name in names
    }


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def _saved_split(place: Folder, folder: Path, state: Mapping[str, Any]) -> Split:
    try:
        names = [str(file["filename"]) for file in state["_data_files"]]
    except (LookupError, TypeError) as error:
        raise UserError(
            f"{folder / STATE} does not name its files ({error!r:.80}); it must hold _data_files, "
            "a list of objects with filename"
        ) from None
    files = [file_inside(place, folder / name) for name in names]
    return Split(partial(arrow_rows, files), count_arrow_rows(files))


def check_repository(place: Folder) -> None:
    """UserError for what would lead the library datasets out of a folder, or nowhere."""
    folder = place.root
    for _ in files_below(place):
        pass
    for name in CARDS:
        if os.path.lexists(folder / name):
            _check_card(folder / name, _card(place, folder / name, whole=name != CARDS[0]))
    if os.path.lexists(folder / INFOS):
        _json(place, folder / INFOS)


def repository_splits(place: Folder, builder: DatasetBuilder) -> dict[str, Split]:
    """Splits of a folder that has been checked."""
    folder = place.root
    data_files: Mapping[str, Sequence[str]] = builder.config.data_files or {}
    files = {
        str(name): [_data_file(place, file, builder) for file in given]
        for name, given in data_files.items()
    }
    if isinstance(builder, Parquet):
        return {
            name: Split(partial(_parquet_loads, given), count_rows(given))
            for name, given in files.items()
        }
    if isinstance(builder, Arrow):
        return {
            name: Split(partial(arrow_rows, given), count_arrow_rows(given))
            for name, given in files.items()
        }
    if isinstance(builder, Json):
        # Arrow's reader dies of lists in lists in lists.
        return {name: Split(partial(_json_loads, given), None) for name, given in files.items()}
    if not isinstance(builder, Csv | ImageFolder):
        raise UserError(
            f"{folder} has files of another kind ({type(builder).__name__}) than Parquet, Arrow, "
            "JSON, CSV or pictures with metadata; take them out, or name the format of tar shards: "
            "--format webdataset"
        )
    _check_features(folder, builder.config.features)
    _check_features(folder, builder.info.features)
    return streamed_splits(builder)


def streamed_splits(builder: DatasetBuilder) -> dict[str, Split]:
    """Splits as the library reads them; pictures stay encoded."""
    totals = {name: info.num_examples for name, info in (builder.info.splits or {}).items()}
    return {
        str(name): Split(partial(_streamed_loads, rows), _count(totals.get(name)))
        for name, rows in builder.as_streaming_dataset().items()
    }


def _count(number: object) -> int | None:
    return number if isinstance(number, int) and number > 0 else None


def _parquet_loads(files: Sequence[Path], start: int) -> Iterator[Load]:
    return (load for _, load in parquet_rows(files, start))


def _json_loads(files: Sequence[Path], start: int) -> Iterator[Load]:
    rows = (row for file in files for row in iter_objects(file))
    return (partial(_given, row) for row in islice(rows, start, None))


def _streamed_loads(rows: IterableDataset, start: int) -> Iterator[Load]:
    rows = rows.skip(start) if start else rows
    if rows.features:
        rows = rows.decode(False)  # decoded, a picture would have to be encoded anew
    for row in rows:
        yield partial(_given, row)


def _given(row: Row) -> Row:
    return row


def file_inside(folder: Folder, path: Path) -> Path:
    """A path below a folder; UserError if it is no file, or one outside where no link may lead."""
    try:
        target, regular = path.resolve(), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, a link to itself
        raise UserError(
            f"{folder.root} names a file that cannot be opened ({error}); take it out"
        ) from None
    if not folder.admits(target):
        raise UserError(
            f"{path} leads out of {folder.root}, to {target}; put a copy into the folder, let "
            f"links lead there with --links {target.parent}, or take out what names it"
        )
    if not regular:
        raise UserError(f"{path} is no file; get an undamaged copy of {folder.root}")
    return path


def files_below(folder: Folder) -> Iterator[Path]:
    """Every file below a folder that is not hidden; UserError for folders without end.

    Links to folders are followed where links may lead, and a UserError elsewhere.
    """
    waiting = [(folder.root, 0)]
    while waiting:
        place, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise UserError(f"{folder.root} has folders in {MAX_DEPTH} folders; give a flatter one")
        try:
            entries = list(os.scandir(place))
        except OSError as error:
            raise UserError(f"{place} cannot be listed ({error}); take it out") from None
        for entry in entries:
            path = Path(entry.path)
            if is_hidden(entry.name) and entry.name not in CARDS:
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append((path, depth + 1))
            elif entry.is_symlink() and path.is_dir():
                target = path.resolve()
                if not any(target.is_relative_to(one.resolve()) for one in folder.links):
                    raise UserError(
                        f"{path} is a link to a folder; replace it by what it leads to, or let "
                        f"links lead there with --links {target}"
                    )
                waiting.append((path, depth + 1))
            elif path.is_file():
                yield path


def _data_file(folder: Folder, given: str, builder: DatasetBuilder) -> Path:
    """A data file that the library has found."""
    if "::" in given or "://" in given:
        raise UserError(f"{given} is no name of a file in {folder.root}; give it a plain one")
    path = Path(given)
    if isinstance(builder, ImageFolder) and path.suffix.lower() in IMAGE_SUFFIXES:
        return path  # opened row by row, which sets aside what leads out
    path = file_inside(folder, path)
    with open(path, "rb") as file:
        if file.read(8).startswith(COMPRESSED):
            # The library would unpack it in memory, however large it becomes.
            raise UserError(f"{path} is compressed; unpack it first")
    if isinstance(builder, ImageFolder) and path.suffix == ".jsonl":
        _check_rows(path)
    return path


def _check_rows(path: Path) -> None:
    """UserError for JSON Lines that Arrow's reader dies of: null for a row, or deep nesting."""
    depth = 0
    for number, line in enumerate(iter_lines(path), 1):
        for mark in _MARK.findall(_TEXT.sub('"', line)):
            if mark in "[{":
                depth += 1
            elif mark in "]}":
                depth -= 1
            elif depth <= 0:
                raise UserError(
                    f"{path}: row {number} has {mark[:40]!r} outside of an object; give one object "
                    "a line"
                )
            if depth > MAX_DEPTH:
                raise UserError(
                    f"{path}: row {number} has more than {MAX_DEPTH} lists and objects in each "
                    "other; make it flatter"
                )


def _read(folder: Folder, path: Path) -> str:
    """A file that describes a data set."""
    size = file_inside(folder, path).stat().st_size
    if size > MAX_BYTES:
        raise UserError(
            f"{path} has {size} bytes; make it smaller than {MAX_BYTES}, or take it out"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); get an undamaged copy") from None


def _json(folder: Folder, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_read(folder, path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no valid JSON ({error}); get an undamaged copy") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} holds {document!r:.40}, which is no object; get an undamaged copy")
    return document


def _card(folder: Folder, path: Path, *, whole: bool) -> dict[str, Any]:
    """The YAML of a file, or of its head alone."""
    text = _read(folder, path)
    if not whole:
        head = REGEX_YAML_BLOCK.search(text)
        text = head.group(2) if head else ""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            check_aliases(node, str(path))
        card = {} if node is None else loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is not valid YAML ({reason:.200}); repair it, or take it out"
        ) from None
    if not isinstance(card, dict):
        raise UserError(
            f"{path} holds {card!r:.40}, which is no mapping; repair it, or take it out"
        )
    return card


def _check_card(path: Path, card: Mapping[str, Any]) -> None:
    configs = card.get("configs") or []
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        raise UserError(f"{path}: configs must be a list of mappings; repair it, or take it out")
    for config in configs:
        unknown = sorted(map(str, config.keys() - CONFIG_FIELDS))
        if unknown:
            raise UserError(
                f"{path}: configs has {', '.join(unknown)!r:.80}, which is not read; take it out "
                f"and keep to {', '.join(sorted(CONFIG_FIELDS))}"
            )
        for name in ("sep", "delimiter"):
            if not isinstance(config.get(name, ","), str) or len(config.get(name, ",")) != 1:
                raise UserError(f"{path}: {name} = {config[name]!r:.40}; give one character")
        for pattern in _texts([config.get("data_files"), config.get("data_dir")]):
            _check_pattern(path, pattern)


def _check_pattern(path: Path, pattern: str) -> None:
    try:
        check_name(pattern)
    except BadRecordError as error:
        raise UserError(f"{path}: {error}; name files below it") from None
    if "::" in pattern or "://" in pattern:
        raise UserError(f"{path}: {pattern!r} is no file below it; fetch it and name the copy")
    if pattern.replace("**", "*").count("*") > MAX_WILDCARDS:
        raise UserError(f"{path}: {pattern!r} has more than {MAX_WILDCARDS} '*'; use fewer")


def _texts(document: Any) -> Iterator[str]:
    """All texts of a document but keys."""
    for _, value in _fields(document):
        if isinstance(value, str):
            yield value


def _fields(document: Any) -> Iterator[tuple[object, Any]]:
    """Keys and values of all objects and lists of a document, at any depth."""
    waiting = [document]
    while waiting:
        one = waiting.pop()
        for key, value in one.items() if isinstance(one, dict) else enumerate(one or ()):
            yield key, value
            if isinstance(value, dict | list):
                waiting.append(value)


def _check_features(folder: Path, features: Any) -> None:
    """UserError for lists of a fixed length: a row without one is filled up, however long."""
    if features is None:
        return
    for key, value in _fields(features.to_dict()):
        if key == "length" and isinstance(value, int) and value >= 0:
            raise UserError(
                f"{folder}: its features have a list of length {value}; take the length out"
            )
