"""Files of a source: found inside of its folder only, and recognised when they have changed."""

import os
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path, PurePosixPath

from data.ingest.raw import BadRecordError

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm")
)
OUTSIDE = "path leads out of the folder"
NO_IMAGE = "no image"


def check_name(name: str) -> None:
    """BadRecordError for an id or path that is absolute or climbs up."""
    path = PurePosixPath(name.replace("\\", "/"))
    drive = len(name) > 1 and name[1] == ":" and name[0].isalpha()
    if path.is_absolute() or drive or ".." in path.parts:
        raise BadRecordError(OUTSIDE, name)


def path_inside(root: Path, name: str) -> Path:
    """A file below `root`; BadRecordError if it is absent or a link leads out."""
    check_name(name)
    try:
        path = (root / name).resolve()
        # Opening a pipe would wait for ever.
        found = path.is_file()
    # A name may have null bytes or be too long, and a link may lead to itself.
    except (OSError, ValueError, RuntimeError) as error:
        raise BadRecordError(NO_IMAGE, f"{name}: {error}") from None
    if not path.is_relative_to(root.resolve()):
        raise BadRecordError(OUTSIDE, f"{name} is a link to {path}")
    if not found:
        raise BadRecordError(NO_IMAGE, f"{name} is no file of {root}")
    return path


def read_inside(root: Path, name: str) -> bytes:
    """Content of a file below `root`; BadRecordError if it is absent or a link leads out."""
    try:
        return path_inside(root, name).read_bytes()
    except OSError as error:
        raise BadRecordError(NO_IMAGE, f"{name}: {error}") from None


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
