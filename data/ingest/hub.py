"""Format `datasets`: a repository of the Hugging Face hub at a revision, or a local copy.

Local copies are what `save_to_disk` wrote and every folder that `load_dataset` knows (Parquet,
image folders, ...). Rows are streamed, pictures stay encoded.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import fsspec
from datasets import IterableDataset
from huggingface_hub import HfApi

from core.errors import UserError
from data.ingest.captions import image_bytes
from data.ingest.places import NO_IMAGE, fingerprint
from data.ingest.raw import TRIES, BadRecordError, FieldCheck, Fields, Item, RawRecord, Row

# Branches and tags of git may have slashes; ids never have more than one.
HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)@(?P<revision>[\w./-]+)")
COMMIT = re.compile(r"[0-9a-f]{40}")
SAVED = ("dataset_dict.json", "state.json")  # in a folder of `save_to_disk`


class HubRows:
    """Rows of one split of a repository of the hub or of a local copy."""

    def __init__(
        self, place: str, fields: Fields, split: str | None = None, subset: str | None = None
    ) -> None:
        self._place, self._fields, self._split, self._subset = place, fields, split, subset
        self._folder = Path(place) if Path(place).is_dir() else None
        self._commit = None if self._folder else _commit(place)
        self._name, self._rows, self._total = self._open()

    @property
    def total(self) -> int | None:
        """As saved, or as the repository says."""
        return self._total

    def items(self, start: int) -> Iterator[Item]:
        rows = self._rows.skip(start) if start else self._rows
        check = FieldCheck(self._fields)
        for number, row in enumerate(self._told(rows), start):
            if number < TRIES:
                check.see(row, f"{self._place}, split {self._name},")
            yield Item(f"{self._name} row {number}", partial(self._record, number, row))
        check.end()

    def fingerprint(self) -> str:
        if self._folder is None:
            return str(self._commit)
        files = sorted(path for path in self._folder.rglob("*") if path.is_file())
        return fingerprint(files)

    def _told(self, rows: IterableDataset) -> Iterator[Row]:
        """Rows; UserError if the library cannot read on."""
        try:
            yield from rows
        except Exception as error:  # clients and decoders raise many types of their own
            raise UserError(
                f"{self._place} could not be read on ({_first_line(error)}); run it again, it goes "
                "on, or replace the file if it is damaged"
            ) from error

    def _record(self, number: int, row: Row) -> RawRecord:
        own = self._fields.get(row, "id")
        record_id = f"{self._name}-{number:09d}" if own is None else str(own)
        image = partial(self._image, self._fields.get(row, "image"))
        return self._fields.record(row, record_id, image)

    def _image(self, value: object) -> bytes:
        path = value.get("path") if isinstance(value, dict) else value
        held = isinstance(value, dict) and value.get("bytes") is not None
        if held or self._folder or not isinstance(path, str):
            return image_bytes(_below(value, self._folder), self._folder or Path())
        # Streamed rows name files of their own repository; nothing else is fetched.
        if f"hf://datasets/{self._place.partition('@')[0]}@" not in path:
            raise BadRecordError(NO_IMAGE, f"{path} is no file of {self._place}")
        try:
            with fsspec.open(path, "rb") as file:
                content: bytes = file.read()
        except OSError as error:
            raise BadRecordError(NO_IMAGE, f"{path}: {error}") from None
        return content

    def _open(self) -> tuple[str, IterableDataset, int | None]:
        """Name, rows and number of rows of the split."""
        try:
            splits = self._splits()
        except Exception as error:  # of the library, its builders and the hub's client
            raise UserError(
                f"{self._place} cannot be opened by the library datasets ({_first_line(error)}); "
                "give a repository or folder that it knows, and --subset if there are several"
            ) from error
        name = self._split or ("train" if "train" in splits else next(iter(splits)))
        if name not in splits or (self._split is None and len(splits) > 1 and name != "train"):
            raise UserError(f"--split = {name!r}: {self._place} has {', '.join(splits)}; name one")
        rows, total = splits[name]
        if rows.features is not None:
            rows = rows.decode(False)  # decoded, a picture would have to be encoded anew
        return name, rows, total

    def _splits(self) -> dict[str, tuple[IterableDataset, int | None]]:
        if self._folder and any((self._folder / name).is_file() for name in SAVED):
            saved = datasets.load_from_disk(str(self._folder))
            if isinstance(saved, datasets.Dataset):
                saved = {str(saved.split or "train"): saved}
            return {str(k): (rows.to_iterable_dataset(), len(rows)) for k, rows in saved.items()}
        found: Any = datasets.load_dataset(
            str(self._folder) if self._folder else self._place.partition("@")[0],
            self._subset,
            revision=self._commit,
            streaming=True,
        )
        totals = {
            name: info.num_examples or None
            for rows in found.values()
            for name, info in (rows.info.splits or {}).items()
        }
        return {str(name): (rows, totals.get(name)) for name, rows in found.items()}


def _below(value: object, folder: Path | None) -> object:
    """A value whose path, if it lies below the folder, is relative to it."""
    if folder is None or not isinstance(value, dict) or not value.get("path"):
        return value
    path = Path(value["path"])
    if path.is_absolute() and path.is_relative_to(folder.absolute()):
        path = path.relative_to(folder.absolute())
    elif not path.is_absolute() and path.is_relative_to(folder):
        path = path.relative_to(folder)
    return {**value, "path": str(path)}


def _commit(place: str) -> str:
    """The commit that a revision of a hub id stands for now."""
    hub = HUB_ID.fullmatch(place)
    assert hub is not None  # what is no folder has been found to be an id
    if COMMIT.fullmatch(hub["revision"]):
        return hub["revision"]
    try:
        return str(HfApi().dataset_info(hub["id"], revision=hub["revision"]).sha)
    except Exception as error:  # the client lets errors of its transport through
        raise UserError(
            f"{place} cannot be asked for at the hub ({_first_line(error)}); correct it, run "
            "`hf auth login` if it is gated, or fetch it with `hf download --repo-type dataset` "
            "where there is a network and give the folder"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
