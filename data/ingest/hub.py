"""Format `datasets`: a repository of the Hugging Face hub at a revision, or a local copy.

Local copies are what `save_to_disk` wrote and repositories of Parquet, Arrow, JSON, CSV or pictures
with metadata. Rows are streamed, pictures stay encoded.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import datasets
import fsspec
from huggingface_hub import HfApi

from core.errors import UserError
from core.names import without_addresses
from data.ingest.captions import image_bytes, no_image, only_image
from data.ingest.local_copies import (
    Split,
    files_below,
    local_splits,
    streamed_splits,
)
from data.ingest.places import NO_IMAGE, Folder, fingerprint
from data.ingest.raw import (
    BadRecordError,
    Fields,
    Item,
    Load,
    PlacedRow,
    RawRecord,
    Source,
    id_text,
    missing,
)

# Branches and tags of git may have slashes; ids never have more than one.
HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)@(?P<revision>[\w./-]+)")
COMMIT = re.compile(r"[0-9a-f]{40}")
MAX_REASON = 300  # characters of what a library says


class HubRows(Source):
    """Rows of one split of a repository of the hub or of a local copy."""

    def __init__(
        self,
        place: str,
        fields: Fields,
        split: str | None = None,
        subset: str | None = None,
        links: tuple[Path, ...] = (),
    ) -> None:
        self._links = links
        self._place, self._fields, self._split, self._subset = place, fields, split, subset
        self._folder = Path(place) if Path(place).is_dir() else None
        self._commit = None if self._folder else _commit(place)
        self._name, self._rows = self._open()

    @property
    def total(self) -> int | None:
        """As saved, or as the repository says."""
        return self._rows.total

    def items(self, start: int) -> Iterator[Item]:
        label = f"{self._place}, split {self._name},"
        rows: Iterator[PlacedRow] = (
            (label, load, ()) for load in self._told(self._rows.rows(start))
        )
        for number, (_, load, _) in enumerate(self._fields.checked(rows, start), start):
            yield Item(f"{self._name} row {number}", partial(self._record, number, load))

    def fingerprint(self) -> str:
        if self._folder is None:
            return str(self._commit)
        files = files_below(Folder(self._folder, self._links))
        return fingerprint(sorted(path for path in files if path.is_file()))

    def _told(self, rows: Iterator[Load]) -> Iterator[Load]:
        """Rows; UserError if the library cannot read on."""
        try:
            yield from rows
        except UserError:
            raise
        except Exception as error:  # clients and decoders raise many types of their own
            raise UserError(
                f"{self._place} could not be read on ({_first_line(error)}); run it again, it goes "
                "on, or replace the file if it is damaged"
            ) from error

    def _record(self, number: int, load: Load) -> RawRecord:
        row = load()
        own = self._fields.get(row, "id")
        record_id = f"{self._name}-{number:09d}" if own is None else id_text(own)
        notes: list[str] = []
        image = partial(self._image, only_image(self._fields.get(row, "image")), notes)
        if missing(self._fields.get(row, "image")):
            image = partial(no_image, self._fields.lack(row, "image"))
        return self._fields.record(row, record_id, image, notes=notes)

    def _image(self, value: object, notes: list[str]) -> bytes:
        path = value.get("path") if isinstance(value, dict) else value
        held = isinstance(value, dict) and not missing(value.get("bytes"))
        if held or self._folder or not isinstance(path, str):
            folder = Folder(self._folder or Path(), self._links)
            return image_bytes(_below(value, self._folder), folder, notes)
        # Streamed rows name files of their own repository; nothing else is fetched.
        if f"hf://datasets/{self._place.partition('@')[0]}@" not in path:
            raise BadRecordError(NO_IMAGE, f"{path} is no file of {self._place}")
        try:
            with fsspec.open(path, "rb") as file:
                content: bytes = file.read()
        except OSError as error:
            raise BadRecordError(NO_IMAGE, f"{path}: {error}") from None
        return content

    def _open(self) -> tuple[str, Split]:
        """Name of the split, and its rows."""
        try:
            splits = self._splits()
        except UserError:
            raise
        except Exception as error:  # of the library, its builders and the hub's client
            raise UserError(
                f"{self._place} cannot be opened by the library datasets ({_first_line(error)}); "
                "give a repository or folder that it knows, and --subset if there are several"
            ) from error
        if not splits:
            raise UserError(f"{self._place} has no splits; give a data set with rows")
        name = self._split or ("train" if "train" in splits else next(iter(splits)))
        if name not in splits or (self._split is None and len(splits) > 1 and name != "train"):
            raise UserError(f"--split = {name!r}: {self._place} has {', '.join(splits)}; name one")
        return name, splits[name]

    def _splits(self) -> dict[str, Split]:
        if self._folder is None:
            place = self._place.partition("@")[0]
            return streamed_splits(
                datasets.load_dataset_builder(place, self._subset, revision=self._commit)
            )
        return local_splits(Folder(self._folder, self._links), self._subset)


def _below(value: object, folder: Path | None) -> object:
    """A value whose path, if it lies below the folder, is relative to it."""
    if folder is None or not isinstance(value, dict) or not isinstance(value.get("path"), str):
        return value
    path = Path(value["path"])
    # The library names files by the folder's path without links.
    for root in (folder, folder.absolute(), folder.resolve()):
        if path.is_absolute() == root.is_absolute() and path.is_relative_to(root):
            return {**value, "path": str(path.relative_to(root))}
    return value


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
    first = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
    return without_addresses(first)[:MAX_REASON]
