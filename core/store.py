"""The artifact store: finished stages under `<root>/<stage>/<key>/`, local or remote.

An artifact exists if and only if its manifest does; the manifest is written last.
"""

import importlib.metadata
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import fsspec

from core.artifact import MANIFEST, Artifact, ArtifactRef, connect, is_local, read_json
from core.errors import UserError
from core.files import TemporaryFolder, locked, put_in_place, sha256_of, sweep, writing_to

SCHEMA_VERSION = 1
SCRATCH = "state/"  # parts below it help a killed stage to resume and are never published
_TEMPORARY = ".tmp"
_LOCK = ".lock"


class Store:
    """Artifacts below one fsspec URI or plain local path."""

    def __init__(self, uri: str) -> None:
        self._filesystem, self._root = connect(uri)
        self.uri = self._filesystem.unstrip_protocol(self._root)

    def check(self) -> None:
        """Make the store if needed; UserError if it cannot be written or has another version."""
        path = f"{self._root}/store.json"
        with writing_to(self.uri):
            found = read_json(self._filesystem, path)
        version = found.get("schema_version") if isinstance(found, dict) else found
        if found is not None and version != SCHEMA_VERSION:
            raise UserError(
                f"store {self.uri} has schema version {version!r}, this program needs "
                f"{SCHEMA_VERSION}; choose another store or move the old one away"
            )
        # Written even if it is there: this is the proof that the store can be written.
        document = json.dumps({"schema_version": SCHEMA_VERSION})
        if is_local(self._filesystem):
            sweep(Path(self._root, _TEMPORARY))
        self.write_text("store.json", document + "\n")

    def write_text(self, name: str, text: str) -> str:
        """Write a document that is no artifact, in the place of an older one; its URI."""
        with (
            closing(TemporaryFolder(Path(self._root, _TEMPORARY))) as folder,
            _placing(self._filesystem, f"{self._root}/{name}", folder, None) as temporary,
        ):
            temporary.write_text(text, encoding="utf-8")
        return f"{self.uri}/{name}"

    def read_json(self, name: str) -> Any | None:
        """A JSON document that is no artifact; None if there is none."""
        return read_json(self._filesystem, f"{self._root}/{name}")

    def find(self, stage: str, key: str) -> ArtifactRef | None:
        """The published artifact of this stage and key, or None."""
        uri = f"{self.uri}/{stage}/{key}"
        manifest = read_json(self._filesystem, f"{self._root}/{stage}/{key}/{MANIFEST}")
        return None if manifest is None else ArtifactRef(stage, key, uri, manifest["digest"])

    def open(self, ref_or_uri: ArtifactRef | str) -> Artifact:
        """Open an artifact for reading; UserError if it is absent, changed or incomplete."""
        if isinstance(ref_or_uri, str):
            return Artifact(ref_or_uri)
        artifact = Artifact(ref_or_uri.uri)
        if artifact.ref.digest != ref_or_uri.digest:
            raise UserError(
                f"{ref_or_uri.uri} has digest {artifact.ref.digest}, expected "
                f"{ref_or_uri.digest}: it was made anew meanwhile; run the whole loop again"
            )
        return artifact

    def draft(self, stage: str, key: str) -> "Draft":
        """Start or continue an unpublished artifact."""
        return Draft(self, stage, key, self._filesystem, f"{self._root}/{stage}/{key}")


class Draft:
    """An artifact in the making: parts finished before a kill are found again.

    Several processes may work on the same key: the first to publish wins, and what the
    others write afterwards is dropped.
    """

    def __init__(
        self,
        store: Store,
        stage: str,
        key: str,
        filesystem: fsspec.AbstractFileSystem,
        root: str,
    ) -> None:
        self._store, self._stage, self._key = store, stage, key
        self._filesystem, self._root = filesystem, root
        self._temporary = TemporaryFolder(Path(root, _TEMPORARY))
        self._fetched: tempfile.TemporaryDirectory[str] | None = None
        if is_local(filesystem):
            sweep(Path(root, _TEMPORARY))

    def has(self, name: str) -> bool:
        """Whether this part is finished."""
        return bool(self._filesystem.isfile(self._at(name)))

    def path(self, name: str) -> Path:
        """Local path for reading a finished part."""
        if is_local(self._filesystem):
            return Path(self._at(name))
        if self._fetched is None:
            self._fetched = tempfile.TemporaryDirectory(prefix="hermesflow-")
        target = Path(self._fetched.name, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._filesystem.get_file(self._at(name), str(target))
        return target

    def names(self, prefix: str = "") -> list[str]:
        """Sorted names of the finished parts that start with `prefix`."""
        root = PurePosixPath(self._root)
        found = (
            str(PurePosixPath(path).relative_to(root)) for path in self._filesystem.find(self._root)
        )
        hidden = (MANIFEST, _LOCK, f"{_TEMPORARY}/")
        return sorted(n for n in found if n.startswith(prefix) and not n.startswith(hidden))

    @contextmanager
    def write(self, name: str) -> Iterator[Path]:
        """Yield a local temporary path; what is written there becomes part `name` on success.

        A part that exists is replaced. Full disk or refused write: UserError.
        """
        target = self._at(name)
        lock = Path(self._root, _LOCK)
        with _placing(self._filesystem, target, self._temporary, lock) as path:
            yield path

    def discard(self, name: str) -> None:
        """Delete a part if it exists."""
        with self._exclusively():
            if self.has(name) and not self._published:
                self._filesystem.rm_file(self._at(name))

    def publish(self, manifest: Mapping[str, Any]) -> ArtifactRef:
        """Make the artifact exist, with `manifest` plus checksums, versions and digest.

        Scratch parts are deleted. If another process has published this key, its artifact
        stays and is returned.
        """
        with self._exclusively():
            if not self._published:
                self._delete_scratch()
                self._write_manifest(manifest)
        self.close()
        ref = self._store.find(self._stage, self._key)
        assert ref is not None
        return ref

    def close(self) -> None:
        """Delete temporary files; finished parts stay for the next draft of the same key."""
        self._temporary.close()
        if self._fetched is not None:
            self._fetched.cleanup()
            self._fetched = None

    def __enter__(self) -> "Draft":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _published(self) -> bool:
        return bool(self._filesystem.isfile(f"{self._root}/{MANIFEST}"))

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        if is_local(self._filesystem):
            with writing_to(self._root), locked(Path(self._root, _LOCK)):
                yield
        else:
            yield

    def _at(self, name: str) -> str:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] in ("/", _TEMPORARY, _LOCK, MANIFEST) or ".." in parts:
            raise ValueError(f"{name!r} cannot name a part of an artifact")
        return f"{self._root}/{name}"

    def _delete_scratch(self) -> None:
        for name in self.names(SCRATCH):
            self._filesystem.rm_file(self._at(name))
        if is_local(self._filesystem):
            _remove_empty_folders(Path(self._root, SCRATCH))

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        files = {}
        for name in self.names():
            path = self.path(name)
            files[name] = {"sha256": sha256_of(path), "size": path.stat().st_size}
        document = {
            **manifest,
            "stage": self._stage,
            "key": self._key,
            "digest": content_digest({name: file["sha256"] for name, file in files.items()}),
            "files": files,
            "versions": _library_versions(),
            "schema_version": SCHEMA_VERSION,
        }
        text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False)
        target = f"{self._root}/{MANIFEST}"
        with _placing(self._filesystem, target, self._temporary, None) as path:
            path.write_text(text + "\n", encoding="utf-8")


def content_digest(checksums: Mapping[str, Any]) -> str:
    """SHA-256 over the sorted (name, sha256) of all files."""
    return sha256(json.dumps(sorted(checksums.items())).encode()).hexdigest()


@contextmanager
def _placing(
    filesystem: fsspec.AbstractFileSystem,
    target: str,
    folder: TemporaryFolder,
    guard: Path | None,
) -> Iterator[Path]:
    """Yield a temporary path that becomes `target` on success.

    With `guard`, under that lock, and only while no manifest lies beside it.
    """
    name = PurePosixPath(target).name
    with writing_to(target):
        if not is_local(filesystem):
            with tempfile.TemporaryDirectory(prefix="hermesflow-") as scratch:
                path = Path(scratch, name)
                yield path
                if guard is None or not filesystem.isfile(str(guard.with_name(MANIFEST))):
                    filesystem.put_file(str(path), target)
            return
        path = folder.new_path(name)
        try:
            yield path
            if guard is None:
                put_in_place(path, Path(target))
            else:
                with locked(guard):
                    if not guard.with_name(MANIFEST).exists():
                        put_in_place(path, Path(target))
        finally:
            path.unlink(missing_ok=True)


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
