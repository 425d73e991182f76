"""References to artifacts, and reading what a stage has published."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from core.errors import UserError
from core.files import put_in_place, sha256_of, writing_to

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ArtifactRef:
    """Points at one published artifact; `dataclasses.asdict` gives its JSON form.

    `key` names what went in, `digest` what came out: equal contents have equal digests.
    """

    stage: str
    key: str
    uri: str
    digest: str


def connect(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI or plain path, and the path there; UserError if there is none."""
    try:
        # Without a listings cache, since other processes write too.
        filesystem, path = url_to_fs(uri, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"{uri!r} cannot be used: {error}; give a folder or a file:// URI"
        ) from None
    return filesystem, path


def is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Whether files of this file system are ordinary local paths."""
    return "file" in (
        [filesystem.protocol] if isinstance(filesystem.protocol, str) else filesystem.protocol
    )


def read_json(filesystem: fsspec.AbstractFileSystem, path: str) -> Any | None:
    """The JSON document at `path`, None if there is none, UserError if it is damaged."""
    try:
        return json.loads(filesystem.cat_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise UserError(f"{path} is not valid JSON; delete its folder and run again") from None


class Artifact:
    """A published artifact; its files are immutable."""

    def __init__(self, uri: str) -> None:
        """Open the artifact at `uri`; UserError if it is absent or a file has a wrong size."""
        self.uri = uri.rstrip("/")
        self._filesystem, self._root = connect(self.uri)
        manifest = read_json(self._filesystem, f"{self._root}/{MANIFEST}")
        if manifest is None:
            raise UserError(
                f"no artifact at {uri}: it has no {MANIFEST}; give the URI of a finished stage"
            )
        self.manifest: Mapping[str, Any] = manifest
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
        return [self.path(name) for name in self.names("part-")]

    def path(self, name: str = "") -> Path:
        """Local path of a file, or of a folder of files; a remote one is fetched first."""
        folder = f"{name}/" if name else ""
        members = [name] if name in self._files else self.names(folder)
        if not members:
            raise UserError(f"{self.uri} has no {name!r}; it has: {', '.join(self.names())}")
        if is_local(self._filesystem):
            return Path(self._root, name)
        for member in members:
            self._fetch(member)
        return self._cache / name

    def verify(self) -> None:
        """Compare every file with its checksum; UserError names the first that differs."""
        for name, entry in self._files.items():
            if sha256_of(self.path(name)) != entry["sha256"]:
                raise self._damaged(name, "its content does not match its checksum")

    def _check_sizes(self) -> None:
        found = self._filesystem.find(self._root, detail=True)
        sizes = {path: info["size"] for path, info in found.items()}
        for name, entry in self._files.items():
            size = sizes.get(str(PurePosixPath(self._root, name)))
            if size is None:
                raise self._damaged(name, "it is missing")
            if size != entry["size"]:
                raise self._damaged(name, f"it has {size} bytes instead of {entry['size']}")

    def _damaged(self, name: str, what: str) -> UserError:
        return UserError(
            f"{self.uri}/{name} is damaged: {what}; delete the folder {self.uri} and run again "
            "to have it made anew"
        )

    @property
    def _cache(self) -> Path:
        user_folder = f"hermesflow-{os.getuid()}"
        return Path(tempfile.gettempdir(), user_folder, str(self.manifest["digest"]))

    def _fetch(self, name: str) -> None:
        target = self._cache / name
        if target.exists():
            return
        with writing_to(target), tempfile.TemporaryDirectory() as folder:
            self._cache.mkdir(parents=True, exist_ok=True)
            part = Path(folder, "part")
            self._filesystem.get_file(f"{self._root}/{name}", str(part))
            if sha256_of(part) != self._files[name]["sha256"]:
                raise self._damaged(name, "its content does not match its checksum")
            put_in_place(part, target)
