"""Files of a source: found inside of its folder only, and recognised when they have changed."""

import os
import posixpath
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path, PurePosixPath

from data.ingest.raw import BadRecordError

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm")
)
UNREAD_SUFFIXES = frozenset((".svg", ".svgz", ".heic", ".heif", ".pdf", ".eps", ".psd"))
OUTSIDE = "path leads out of the folder"
NO_IMAGE = "no image"
# How a name was found that is spelled otherwise on disk, as ingestion counts it.
BACKSLASHES = "path with backslashes read with slashes"
INNER = "absolute path, or one with '..', read as one below the folder"
OTHER_FORM = "file name in another Unicode form found"
OTHER_CASE = "file name in other capitals found"


def check_name(name: str) -> None:
    """BadRecordError for an id or path that is absolute or climbs up."""
    path = PurePosixPath(name.replace("\\", "/"))
    drive = len(name) > 1 and name[1] == ":" and name[0].isalpha()
    if path.is_absolute() or drive or ".." in path.parts:
        raise BadRecordError(OUTSIDE, name)


@dataclass(frozen=True)
class Found:
    """A file below a folder: its name from there, in slashes, where it is, and how it was found."""

    name: str
    path: Path
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Folder:
    """A folder whose files are read; links may lead to `links`, too, and into the hub's cache."""

    root: Path
    links: tuple[Path, ...] = ()

    def admits(self, target: Path) -> bool:
        """Whether a path without links may be read."""
        parents = (self.root.absolute(), *self.root.absolute().parents)
        # Snapshots of the hub's cache consist of links to its blobs.
        blobs = [one.parent / "blobs" for one in parents if one.name == "snapshots"]
        places = (self.root, *self.links, *blobs)
        return any(target.is_relative_to(_resolved(place)) for place in places)

    def find(self, name: str) -> Found:
        """A file by its name; BadRecordError if it is absent, or the name or a link leads out."""
        first: BadRecordError | None = None
        for spelled, notes in _spellings(name):
            try:
                inner, more = self._inner(spelled)
                path = self._file(inner)
            except BadRecordError as error:
                first = first or error
                continue
            if path is not None:
                return Found(unicodedata.normalize("NFC", inner), path, notes + more)
        found = self._alike(name)
        if found is not None:
            return found
        raise first or BadRecordError(NO_IMAGE, f"{name} is no file of {self.root}")

    def read(self, name: str, notes: list[str] | None = None) -> bytes:
        """The content of a file by its name, with notes of how it was found."""
        found = self.find(name)
        if notes is not None:
            notes += found.notes
        try:
            return found.path.read_bytes()
        except OSError as error:
            raise BadRecordError(NO_IMAGE, f"{name}: {error}") from None

    def _inner(self, name: str) -> tuple[str, tuple[str, ...]]:
        """A name without '..' from the folder on, wherever it starts; BadRecordError outside."""
        if "\0" in name:
            raise BadRecordError(NO_IMAGE, f"{name!r} has null characters")
        drive = len(name) > 1 and name[1] == ":" and name[0].isalpha()
        plain = posixpath.normpath(name)
        if not drive and not posixpath.isabs(name) and plain.partition("/")[0] != "..":
            return plain, (INNER,) if ".." in PurePosixPath(name).parts else ()
        for root in dict.fromkeys((self.root.absolute(), self.root.resolve())):
            path = Path(os.path.normpath(root / name))
            if not drive and path != root and path.is_relative_to(root):
                return path.relative_to(root).as_posix(), (INNER,)
        raise BadRecordError(OUTSIDE, name)

    def _file(self, name: str) -> Path | None:
        """What a link below the folder leads to, None without a file; BadRecordError outside."""
        try:
            path = (self.root / name).resolve()
            # Opening a pipe would wait for ever.
            found = path.is_file()
        # A name may be too long, and a link may lead to itself.
        except (OSError, ValueError, RuntimeError) as error:
            raise BadRecordError(NO_IMAGE, f"{name}: {error}") from None
        if not self.admits(path):
            raise BadRecordError(
                OUTSIDE,
                f"{name} is a link to {path}; --links {path.parent} lets links lead there",
            )
        return path if found else None

    def _alike(self, name: str) -> Found | None:
        """The only file whose name differs in Unicode form or capitals alone."""
        try:
            inner, _ = self._inner(name.replace("\\", "/"))
            place, parts = self.root, []
            for part in PurePosixPath(inner).parts:
                names = _listing(place, place.stat().st_mtime_ns).get(_key(part), ())
                exact = [one for one in names if _composed(one) == _composed(part)] or names
                if len(exact) != 1:
                    return None
                parts.append(exact[0])
                place = place / exact[0]
            path = self._file("/".join(parts))
        except (BadRecordError, OSError, ValueError):
            return None
        if path is None:
            return None
        joined = _composed("/".join(parts))
        return Found(joined, path, (OTHER_FORM if joined == _composed(inner) else OTHER_CASE,))


@lru_cache(maxsize=64)
def _resolved(folder: Path) -> Path:
    """A folder without links, which would be looked for in every row."""
    return folder.resolve()


def _spellings(name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A name as it is and as other systems write it."""
    for slashes, how in ((name, ()), (name.replace("\\", "/"), (BACKSLASHES,))):
        if how and slashes == name:
            return
        yield slashes, how
        for form in ("NFC", "NFD"):
            other = unicodedata.normalize(form, slashes)
            if other != slashes:
                yield other, (*how, OTHER_FORM)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _key(name: str) -> str:
    return _composed(_composed(name).casefold())


@lru_cache(maxsize=8)
def _listing(folder: Path, changed: int) -> dict[str, list[str]]:
    """Names in a folder by what they have in common whatever their form and capitals."""
    found: dict[str, list[str]] = {}
    for name in os.listdir(folder):  # noqa: PTH208 - a million names
        found.setdefault(_key(name), []).append(name)
    return found


def fingerprint(files: Sequence[Path], images: Path | None = None) -> str:
    """SHA-256 over name, size and time of files and of all pictures below a folder."""
    total = 0
    for path in files:
        total += _stamp(path.name, path.stat())
    for name, status in _pictures(images) if images else ():
        total += _stamp(name, status)
    return f"{total % 2**256:064x}"


def _stamp(name: str, status: os.stat_result) -> int:
    """A number; sums of them depend on no order, so a tree need not be held to be sorted."""
    text = f"{name}\0{status.st_size}\0{status.st_mtime_ns}"
    return int.from_bytes(sha256(text.encode(errors="surrogateescape")).digest(), "big")


def _pictures(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118 - a million paths
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and os.path.exists(path):  # noqa: PTH110, PTH122
                yield os.path.relpath(path, root), os.stat(path)
