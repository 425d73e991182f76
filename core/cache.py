"""Files that were fetched from a remote store to this machine.

Published files never change, so what was fetched once serves all later stages and processes. The
folder may be deleted whenever none of them runs.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from core.files import TemporaryFolder, locked, put_in_place, sha256_of, sweep, writing_to


def cache_folder() -> Path:
    """HERMESFLOW_CACHE, or else `hermesflow` in the user's cache folder (XDG_CACHE_HOME)."""
    if given := os.environ.get("HERMESFLOW_CACHE"):
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "hermesflow")


def temporary_folder() -> Path:
    """Where files lie on their way from or to a remote store."""
    return cache_folder() / ".tmp"


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for a while; if this process is killed, the next one that wants any removes it."""
    sweep(temporary_folder())
    with closing(TemporaryFolder(temporary_folder())) as temporary:
        folder = temporary.new_path("folder")
        folder.mkdir()
        yield folder


def cached(path: Path, checksum: str, fetch: Callable[[Path], None]) -> None:
    """Have the file with this SHA-256 at `path` in the cache, by `fetch` to a place if needed.

    A damaged file is fetched again; several processes wait for one that fetches.
    """
    with writing_to(path):
        if _holds(path, checksum):
            return
        with locked(cache_folder() / ".locks" / checksum):
            if not _holds(path, checksum):
                sweep(temporary_folder())
                with closing(TemporaryFolder(temporary_folder())) as folder:
                    temporary = folder.new_path(path.name)
                    fetch(temporary)
                    put_in_place(temporary, path)


def _holds(path: Path, checksum: str) -> bool:
    return path.is_file() and sha256_of(path) == checksum
