"""References to artifacts, and reading what a stage has published."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from core.cache import cache_folder, cached
from core.errors import UserError
from core.files import sha256_of
from core.remote import connect, download, is_local, reaching, read_json

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
FREED = "freed.json"  # beside a manifest: names of files that were deleted to save space
_BLOCK = 8 * 2**20
PART = "part-"  # begins the names of a table's Parquet files


def part_name(index: int) -> str:
    """Name of a Parquet part of a table."""
    return f"{PART}{index:05d}.parquet"


@dataclass(frozen=True)
class ArtifactRef:
    """Points at one published artifact; `dataclasses.asdict` gives its JSON form.

    `key` names what went in, `digest` what came out: equal contents have equal digests.
    """

    stage: str
    key: str
    uri: str
    digest: str


def content_digest(checksums: Mapping[str, Any]) -> str:
    """SHA-256 over the sorted (name, sha256) of all files."""
    return sha256(json.dumps(sorted(checksums.items())).encode()).hexdigest()


def checked_manifest(document: Any, uri: str) -> Mapping[str, Any]:
    """A manifest whose names and digests may become paths; UserError for any other document."""

    def refuse(what: str) -> UserError:
        return UserError(
            f"{uri}/{MANIFEST} is damaged: {what}; delete the folder {uri} and run again to have "
            "it made anew"
        )

    if not isinstance(document, dict):
        raise refuse("it is no object")
    for name in ("stage", "key", "digest"):
        if not isinstance(document.get(name), str):
            raise refuse(f"{name} is {document.get(name)!r} and no text")
    if not _SHA256.fullmatch(document["digest"]):
        raise refuse(f"digest {document['digest']!r} is no SHA-256")
    files = document.get("files")
    if not isinstance(files, dict):
        raise refuse("it lists no files")
    for name, entry in files.items():
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
            raise refuse(f"{name!r} names no file of it")
        if not isinstance(entry, dict) or type(entry.get("size")) is not int:
            raise refuse(f"{name!r} has no size")
        if not _SHA256.fullmatch(str(entry.get("sha256"))):
            raise refuse(f"{name!r} has no SHA-256")
    return document


def read_manifest(filesystem: fsspec.AbstractFileSystem, root: str) -> Mapping[str, Any] | None:
    """The manifest of the artifact below `root`; UserError if this program cannot read it."""
    manifest = read_json(filesystem, f"{root}/{MANIFEST}")
    if manifest is None:
        return None
    version = manifest.get("schema_version") if isinstance(manifest, dict) else manifest
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{root}/{MANIFEST} has schema version {version!r}, this program needs "
            f"{SCHEMA_VERSION}; delete its folder and run again to have it made anew"
        )
    return checked_manifest(manifest, root)


class Artifact:
    """A published artifact; its files are immutable, apart from those that were freed."""

    def __init__(self, uri: str) -> None:
        """Open the artifact at `uri`; UserError if it is absent or a file has a wrong size."""
        self.uri = uri.rstrip("/")
        self._filesystem, self._root = connect(self.uri)
        manifest = read_manifest(self._filesystem, self._root)
        if manifest is None:
            raise UserError(
                f"no artifact at {uri}: it has no {MANIFEST}; give the URI of a finished stage"
            )
        self.manifest = manifest
        self._fetched: set[str] = set()
        self._check_sizes()

    @property
    def ref(self) -> ArtifactRef:
        manifest = self.manifest
        return ArtifactRef(manifest["stage"], manifest["key"], self.uri, manifest["digest"])

    @cached_property
    def _files(self) -> Mapping[str, Mapping[str, Any]]:
        files: Mapping[str, Mapping[str, Any]] = self.manifest["files"]
        return files

    def names(self, prefix: str = "") -> list[str]:
        """Sorted names of the files that start with `prefix`."""
        return sorted(name for name in self._files if name.startswith(prefix))

    def parts(self) -> list[Path]:
        """Local paths of the Parquet parts of a table, in order."""
        return [self.path(name) for name in self.names(PART)]

    def path(self, name: str = "") -> Path:
        """Local path of a file, or of a folder of files; a remote one is fetched first."""
        folder = f"{name}/" if name else ""
        members = [name] if name in self._files else self.names(folder)
        if not members:
            raise UserError(f"{self.uri} has no {name!r}; it has: {', '.join(self.names())}")
        if self.freed.intersection(members):
            raise UserError(
                f"{self.uri}/{name} was deleted to save space; delete the folder {self.uri} and "
                "run again to have it made anew"
            )
        if is_local(self._filesystem):
            return Path(self._root, name)
        for member in members:
            self._fetch(member)
        return self._cache / name

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return int(self._files[name]["size"])

    def verify(self) -> None:
        """Compare every file with its checksum; UserError names the first that differs."""
        for name in self.names():
            if name not in self.freed and not self.is_whole(name):
                raise self._damaged(name, "its content does not match its checksum")

    def is_whole(self, name: str) -> bool:
        """Whether the content of a file matches its checksum, without keeping a copy here."""
        with (
            reaching(self._filesystem, self._root),
            self._filesystem.open(self._at(name), "rb") as file,
        ):
            found = sha256()
            while block := file.read(_BLOCK):
                found.update(block)
        return found.hexdigest() == str(self._files[name]["sha256"])

    @cached_property
    def freed(self) -> frozenset[str]:
        """Names of the files that were deleted to save space."""
        if not self._missing:
            return frozenset()
        return frozenset(read_json(self._filesystem, f"{self._root}/{FREED}") or ())

    def _check_sizes(self) -> None:
        with reaching(self._filesystem, self._root):
            found = self._filesystem.find(self._root, detail=True)
        sizes = {path: info["size"] for path, info in found.items()}
        self._missing = any(self._at(name) not in sizes for name in self._files)
        for name, entry in self._files.items():
            size = sizes.get(self._at(name))
            if name in self.freed:
                continue
            if size is None:
                raise self._damaged(name, "it is missing")
            if size != entry["size"]:
                raise self._damaged(name, f"it has {size} bytes instead of {entry['size']}")

    def _at(self, name: str) -> str:
        path = PurePosixPath(self._root, name)
        return str(path if is_local(self._filesystem) else path / self._files[name]["sha256"])

    def _damaged(self, name: str, what: str) -> UserError:
        return UserError(
            f"{self.uri}/{name} is damaged: {what}; delete the folder {self.uri} and run again "
            "to have it made anew"
        )

    @property
    def _cache(self) -> Path:
        return cache_folder() / "artifacts" / str(self.manifest["digest"])

    def _fetch(self, name: str) -> None:
        """Have a file in the cache; what is there is compared with its checksum once."""
        checksum = self._files[name]["sha256"]

        def fetch(path: Path) -> None:
            download(self._filesystem, self._at(name), path)
            if sha256_of(path) != checksum:
                raise self._damaged(name, "its content does not match its checksum")

        if name not in self._fetched:
            cached(self._cache / name, checksum, fetch)
            self._fetched.add(name)
