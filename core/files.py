"""Atomic, locked and crash-safe file operations on a local file system."""

import errno
import fcntl
import hashlib
import itertools
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOENT,
    errno.EFBIG,
)  # fmt: skip


@contextmanager
def writing_to(path: str | Path) -> Iterator[None]:
    """Turn a full disk or a refused write inside the block into a UserError naming `path`."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        # Writers in native code report a full disk under exception types of their own.
        if number in _FULL or "No space left on device" in str(error):
            raise UserError(
                f"disk full while writing {path}; free some space or move the store, "
                "then run again: finished parts are kept"
            ) from error
        if number in _DENIED:
            raise UserError(
                f"{path} cannot be written ({os.strerror(number)}); "
                "change its permissions or choose another place"
            ) from error
        raise


def sha256_of(path: str | Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_in_place(temporary: Path, target: Path) -> None:
    """Move a finished file to `target` atomically, so that it survives a power cut."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _sync(temporary)
    os.replace(temporary, target)
    _sync(target.parent)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder that becomes `target` when the block ends, and vanishes if it fails."""
    if target.exists():
        raise UserError(f"--to {target} exists already; remove it or give another path")
    scratch = target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        with writing_to(target):
            scratch.mkdir(parents=True)
        yield scratch
        with writing_to(target):
            os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; the system releases it when its process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


_used: dict[Path, int] = {}  # open files whose shared locks end with this process


def use(path: Path) -> None:
    """Share the lock file `path` until this process ends, however it ends."""
    path.touch()
    # For reading, since a file that is open for writing keeps a disk from being made read-only.
    descriptor = os.open(path, os.O_RDONLY)
    known = _used.get(path)
    if known is not None and os.path.sameopenfile(known, descriptor):
        os.close(descriptor)
        return
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    _used[path] = descriptor
    if known is not None:  # of a folder that was deleted meanwhile
        os.close(known)


@contextmanager
def unused(path: Path) -> Iterator[bool]:
    """Whether no process shares the lock file `path`; if so, none does during the block."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


class TemporaryFolder:
    """Temporary files under `<root>/<random>/`, guarded by a lock that dies with its process.

    A lock instead of a process id, because several containers may share the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._name = uuid.uuid4().hex
        self._counter = itertools.count()
        self._lock: int | None = None

    def new_path(self, basename: str) -> Path:
        """A fresh path that ends in `basename`, since some writers look at the suffix."""
        folder = self._root / self._name
        while self._lock is None:
            # Another process may remove it between the two looks that mkdir takes.
            with suppress(FileExistsError):
                self._root.mkdir(parents=True, exist_ok=True)
            self._lock = _try_lock(self._lock_path)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{next(self._counter)}-{basename}"

    def close(self) -> None:
        """Delete the temporary files of this process, and the root if nobody else uses it."""
        if self._lock is None:
            return
        _remove(self._root, self._lock_path)
        os.close(self._lock)
        self._lock = None
        with suppress(OSError):
            self._root.rmdir()

    @property
    def _lock_path(self) -> Path:
        return self._root / f"{self._name}.lock"


def sweep(root: Path) -> None:
    """Delete the temporary files of dead processes under `root`; live ones keep theirs."""
    try:
        lock_paths = list(root.glob("*.lock"))
    except FileNotFoundError:  # another process has removed it meanwhile
        return
    for lock_path in lock_paths:
        descriptor = _try_lock(lock_path)
        if descriptor is not None:
            _remove(root, lock_path)
            os.close(descriptor)
    with suppress(OSError):
        root.rmdir()


def _remove(root: Path, lock_path: Path) -> None:
    shutil.rmtree(root / lock_path.stem, ignore_errors=True)
    lock_path.unlink(missing_ok=True)


def _try_lock(path: Path) -> int | None:
    """An open descriptor that holds the lock `path`, or None if another process has it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:  # its folder was removed meanwhile
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A sweeper may have unlinked the file between our open and our lock.
        if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None
