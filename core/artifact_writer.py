"""Artifacts in the making: parts that are finished one by one, then published with a manifest."""

import importlib.metadata
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from core.artifact import FREED, MANIFEST, SCHEMA_VERSION, ArtifactRef, content_digest
from core.cache import temporary_folder
from core.files import TemporaryFolder, locked, put_in_place, sha256_of, sweep, writing_to
from core.remote import create, download, reaching, read_json, upload

SCRATCH = "state/"  # parts below it help a killed stage to resume and are never published
TEMPORARY = ".tmp"
_LOCK = ".lock"
_NEWEST = "newest"

Files = Mapping[str, Mapping[str, Any]]  # sha256 and size of each part


class ArtifactWriter(ABC):
    """An artifact in the making: parts finished before a kill are found again.

    Several processes may work on the same key: the first to publish wins, and what the
    others write afterwards is dropped.
    """

    def __init__(
        self,
        stage: str,
        key: str,
        filesystem: fsspec.AbstractFileSystem,
        root: str,
        temporary: Path,
    ) -> None:
        self._stage, self._key = stage, key
        self._filesystem, self._root = filesystem, root
        self._temporary = TemporaryFolder(temporary)
        sweep(temporary)

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether this part is finished."""

    def has_all(self, names: Iterable[str]) -> bool:
        """Whether all these parts are finished."""
        return set(names) <= set(self.names())

    @abstractmethod
    def path(self, name: str) -> Path:
        """Local path for reading a finished part."""

    @abstractmethod
    def names(self, prefix: str = "") -> list[str]:
        """Sorted names of the finished parts that start with `prefix`."""

    @abstractmethod
    def write(self, name: str) -> AbstractContextManager[Path]:
        """Yield a local temporary path; what is written there becomes part `name` on success.

        A part that exists is replaced. Full disk or refused write: UserError.
        """

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder for files on their way to parts, gone at the end even if the process is killed.

        Beside the parts of a local store, so that moving them there copies nothing.
        """
        folder = self._temporary.new_path("folder")
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @abstractmethod
    def discard(self, name: str) -> None:
        """Delete a part below SCRATCH if it exists; others may be in a manifest already."""

    def publish(self, manifest: Mapping[str, Any]) -> ArtifactRef:
        """Make the artifact exist, with `manifest` plus checksums, versions and digest.

        Scratch parts are deleted. If another process has published this key, its artifact
        stays and is returned.
        """
        self._publish(manifest)
        self.close()
        uri = self._filesystem.unstrip_protocol(self._root)
        published = read_json(self._filesystem, f"{self._root}/{MANIFEST}")
        assert published is not None
        return ArtifactRef(self._stage, self._key, uri, published["digest"])

    def close(self) -> None:
        """Delete temporary files; finished parts stay for the next draft of the same key."""
        self._temporary.close()

    def __enter__(self) -> "ArtifactWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _publish(self, manifest: Mapping[str, Any]) -> None:
        """Delete scratch parts and write the manifest, unless there is one."""

    def _at(self, name: str) -> str:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] in ("/", TEMPORARY, _LOCK, MANIFEST, FREED) or ".." in parts:
            raise ValueError(f"{name!r} cannot name a part of an artifact")
        return f"{self._root}/{name}"

    def _at_scratch(self, name: str) -> str:
        if not name.startswith(SCRATCH):
            raise ValueError(f"{name!r} cannot be discarded: it is not below {SCRATCH}")
        return self._at(name)

    def _manifest(self, manifest: Mapping[str, Any], files: Files) -> str:
        document = {
            **manifest,
            "stage": self._stage,
            "key": self._key,
            "digest": content_digest({name: file["sha256"] for name, file in files.items()}),
            "files": files,
            "versions": _library_versions(),
            "schema_version": SCHEMA_VERSION,
        }
        return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"


class LocalArtifactWriter(ArtifactWriter):
    """A draft in a folder: part `name` is the file `name`, and writers take turns by a lock."""

    def __init__(
        self, stage: str, key: str, filesystem: fsspec.AbstractFileSystem, root: str
    ) -> None:
        super().__init__(stage, key, filesystem, root, Path(root, TEMPORARY))

    def has(self, name: str) -> bool:
        return self.path(name).is_file()

    def path(self, name: str) -> Path:
        return Path(self._at(name))

    def names(self, prefix: str = "") -> list[str]:
        root = PurePosixPath(self._root)
        found = (
            str(PurePosixPath(path).relative_to(root)) for path in self._filesystem.find(self._root)
        )
        hidden = (MANIFEST, _LOCK, f"{TEMPORARY}/")
        return sorted(n for n in found if n.startswith(prefix) and not n.startswith(hidden))

    @contextmanager
    def write(self, name: str) -> Iterator[Path]:
        target = self.path(name)
        with writing_to(target):
            path = self._temporary.new_path(target.name)
            try:
                yield path
                with self._locked():
                    if not self._published:
                        put_in_place(path, target)
            finally:
                path.unlink(missing_ok=True)

    def discard(self, name: str) -> None:
        path = Path(self._at_scratch(name))
        with writing_to(path), self._locked():
            path.unlink(missing_ok=True)

    def _publish(self, manifest: Mapping[str, Any]) -> None:
        with writing_to(self._root), self._locked():
            if self._published:
                return
            for name in self.names(SCRATCH):
                self.path(name).unlink()
            _remove_empty_folders(Path(self._root, SCRATCH))
            files = {}
            for name in self.names():
                path = self.path(name)
                files[name] = {"sha256": sha256_of(path), "size": path.stat().st_size}
            path = self._temporary.new_path(MANIFEST)
            path.write_text(self._manifest(manifest, files), encoding="utf-8")
            put_in_place(path, Path(self._root, MANIFEST))

    @property
    def _published(self) -> bool:
        return Path(self._root, MANIFEST).exists()

    def _locked(self) -> AbstractContextManager[None]:
        return locked(Path(self._root, _LOCK))


class RemoteArtifactWriter(ArtifactWriter):
    """A draft on an object store, where nobody can hold a lock.

    Part `name` is the object `name/<sha256>`. Writers that disagree write different objects, so
    what a manifest names is never replaced; what it does not name is left where it is. Scratch
    parts, which no manifest names, are replaced in place: `name/newest`.
    """

    def __init__(
        self, stage: str, key: str, filesystem: fsspec.AbstractFileSystem, root: str
    ) -> None:
        super().__init__(stage, key, filesystem, root, temporary_folder())
        self._written: dict[str, str] = {}  # our own versions of parts

    def has(self, name: str) -> bool:
        self._at(name)  # refuses what is no name
        return name in self._sizes(f"{name}/")

    def path(self, name: str) -> Path:
        where = self._at(name)
        version = self._chosen(name, self._sizes(f"{name}/")[name])
        path = self._temporary.new_path(PurePosixPath(name).name)
        download(self._filesystem, f"{where}/{version}", path)
        return path

    def names(self, prefix: str = "") -> list[str]:
        return sorted(self._sizes(prefix))

    @contextmanager
    def write(self, name: str) -> Iterator[Path]:
        where = self._at(name)
        with writing_to(temporary_folder()):
            path = self._temporary.new_path(PurePosixPath(name).name)
            try:
                yield path
                if not self._published:
                    version = _NEWEST if name.startswith(SCRATCH) else sha256_of(path)
                    upload(self._filesystem, path, f"{where}/{version}")
                    self._written[name] = version
            finally:
                path.unlink(missing_ok=True)

    def discard(self, name: str) -> None:
        where = self._at_scratch(name)
        if self.has(name):
            with reaching(self._filesystem, where):
                self._filesystem.rm_file(f"{where}/{_NEWEST}")

    def _publish(self, manifest: Mapping[str, Any]) -> None:
        if self._published:
            return
        for name in self.names(SCRATCH):
            self.discard(name)
        files = {}
        for name, sizes in self._sizes().items():
            if not name.startswith(SCRATCH):  # another writer may make new ones
                checksum = self._chosen(name, sizes)
                files[name] = {"sha256": checksum, "size": sizes[checksum]}
        text = self._manifest(manifest, files)
        create(self._filesystem, f"{self._root}/{MANIFEST}", text.encode())

    @property
    def _published(self) -> bool:
        return read_json(self._filesystem, f"{self._root}/{MANIFEST}") is not None

    def _sizes(self, prefix: str = "") -> dict[str, dict[str, int]]:
        """Sizes of all objects that start with `prefix`, by part and version."""
        with reaching(self._filesystem, self._root):
            found = self._filesystem.find(self._root, prefix=prefix, detail=True)
        sizes: dict[str, dict[str, int]] = {}
        for path, info in found.items():
            relative = PurePosixPath(path).relative_to(self._root)
            # Not the manifest; and not all file systems heed the prefix.
            if relative.parent.name and str(relative).startswith(prefix):
                sizes.setdefault(str(relative.parent), {})[relative.name] = info["size"]
        return sizes

    def _chosen(self, name: str, versions: Mapping[str, int]) -> str:
        """Our own version of a part, or else the newest."""
        if name in self._written:
            return self._written[name]
        if len(versions) == 1:
            return next(iter(versions))
        where = self._at(name)
        with reaching(self._filesystem, where):
            return max(
                versions, key=lambda version: self._filesystem.modified(f"{where}/{version}")
            )


def _remove_empty_folders(root: Path) -> None:
    if root.is_dir():
        for child in root.iterdir():
            _remove_empty_folders(child)
        root.rmdir()


def _library_versions() -> dict[str, str]:
    names = ("hermesflow", "torch", "transformers", "numpy", "pyarrow", "prefect", "mlflow")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
