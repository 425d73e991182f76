"""Local copies of data sets: what the library datasets finds in a folder, and nothing outside.

The library resolves splits and files. Each file must lie in the folder before anything reads it:
README.md and state.json may name files anywhere. Parquet, Arrow and JSON are read by our own
readers, which survive damaged files; the library streams the rest.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from datasets import DatasetBuilder, IterableDataset
from datasets.packaged_modules.arrow.arrow import Arrow
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet
from huggingface_hub import RepoCard

from core.errors import UserError
from core.names import is_hidden
from data.ingest.arrow_files import arrow_rows, count_arrow_rows, parquet_rows
from data.ingest.json_files import iter_objects
from data.ingest.places import IMAGE_SUFFIXES, Folder
from data.ingest.raw import Load
from data.tables import count_rows

SAVED = ("dataset_dict.json", "state.json")  # of which `save_to_disk` writes one
CARDS = ("README.md", ".huggingface.yaml")


@dataclass(frozen=True)
class Split:
    """`rows` gives all from a number on; `total` is their number where it is known."""

    rows: Callable[[int], Iterator[Load]]
    total: int | None


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` made a folder."""
    return any((folder / name).is_file() for name in SAVED)


def local_splits(place: Folder, subset: str | None) -> dict[str, Split]:
    """Splits of a folder of `save_to_disk`, or of a repository."""
    for path in files_below(place):
        if path.suffix.lower() not in IMAGE_SUFFIXES:  # those are set aside one by one
            file_inside(place, path)
    if is_saved(place.root):
        return _saved_splits(place)
    for name in CARDS:
        _check_card(place.root / name)
    # A path, lest a folder called "csv" be taken for the reader of that name.
    return _repository_splits(
        place, datasets.load_dataset_builder(str(place.root.absolute()), subset)
    )


def _saved_splits(place: Folder) -> dict[str, Split]:
    loaded = datasets.load_from_disk(str(place.root))
    if isinstance(loaded, datasets.Dataset):
        loaded = {str(loaded.split or "train"): loaded}
    return {
        name: _arrow_split([file_inside(place, Path(one["filename"])) for one in rows.cache_files])
        for name, rows in loaded.items()
    }


def _arrow_split(files: Sequence[Path]) -> Split:
    return Split(partial(arrow_rows, files), count_arrow_rows(files))


def _check_card(card: Path) -> None:
    """UserError for data files on a network, which the library would ask for."""
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8")
    head = text if card.name == CARDS[0] else f"---\n{text}\n---\n"
    configs = str(RepoCard(head, ignore_metadata_errors=True).data.get("configs"))
    if "://" in configs or "::" in configs:
        raise UserError(f"{card} names data files that are not in its folder; fetch them first")


def _repository_splits(place: Folder, builder: DatasetBuilder) -> dict[str, Split]:
    data_files: Mapping[str, Sequence[str]] = builder.config.data_files or {}
    files = {str(name): [Path(one) for one in given] for name, given in data_files.items()}
    for path in (one for given in files.values() for one in given):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            file_inside(place, path)
    if isinstance(builder, Parquet):
        return {
            name: Split(partial(_parquet_loads, given), count_rows(given))
            for name, given in files.items()
        }
    if isinstance(builder, Arrow):
        return {name: _arrow_split(given) for name, given in files.items()}
    if isinstance(builder, Json):
        # Arrow's reader dies of lists in lists in lists.
        return {name: Split(partial(_json_loads, given), None) for name, given in files.items()}
    if not isinstance(builder, Csv | ImageFolder):
        raise UserError(
            f"{place.root} has files of another kind ({type(builder).__name__}) than Parquet, "
            "Arrow, JSON, CSV or pictures with metadata; take them out, or name the format of tar "
            "shards: --format webdataset"
        )
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
    return (partial(dict, row) for row in islice(rows, start, None))


def _streamed_loads(rows: IterableDataset, start: int) -> Iterator[Load]:
    rows = rows.skip(start) if start else rows
    if rows.features:
        rows = rows.decode(False)  # decoded, a picture would have to be encoded anew
    for row in rows:
        yield partial(dict, row)


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
    """Everything below a folder that is neither hidden nor a folder.

    Links to folders are followed where links may lead, and a UserError elsewhere.
    """
    for place, folders, names in os.walk(folder.root, onerror=_unlisted, followlinks=True):
        folders[:] = [name for name in folders if not is_hidden(name)]
        for path in (Path(place, name) for name in folders):
            target = path.resolve()
            if path.is_symlink() and not any(
                target.is_relative_to(one.resolve()) for one in folder.links
            ):
                raise UserError(
                    f"{path} is a link to a folder; replace it by what it leads to, or let "
                    f"links lead there with --links {target}"
                )
        yield from (Path(place, name) for name in names if not is_hidden(name) or name in CARDS)


def _unlisted(error: OSError) -> Any:
    raise UserError(f"{error.filename} cannot be listed ({error}); take it out") from None
