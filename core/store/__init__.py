"""The artifact store: finished stages under `<root>/<stage>/<key>/`, local or remote.

An artifact exists if and only if its manifest does; the manifest is written last.
"""

import json
from contextlib import closing
from glob import escape, glob
from pathlib import Path, PurePosixPath
from typing import Any

from core.artifact import SCHEMA_VERSION, Artifact, ArtifactRef, read_manifest
from core.artifact_writer import (
    TEMPORARY,
    ArtifactWriter,
    LocalArtifactWriter,
    RemoteArtifactWriter,
)
from core.errors import UserError
from core.files import TemporaryFolder, put_in_place, sweep, use, writing_to
from core.remote import connect, is_local, reaching, read_json

IN_USE = ".in-use"  # locked, in a local store, by every process that works with it


class Store:
    """Artifacts below one fsspec URI or plain local path."""

    def __init__(self, uri: str) -> None:
        self.filesystem, self.root = connect(uri)
        self.uri = self.filesystem.unstrip_protocol(self.root)

    def check(self) -> None:
        """Make the store if needed; UserError if it cannot be written or has another version.

        From then on a local store is in use by this process, so nothing is freed under it, and
        what processes that were killed have left in it is gone.
        """
        hurried, root = connect(self.uri, patient=False)
        with writing_to(self.uri):
            found = read_json(hurried, f"{root}/store.json")
        version = found.get("schema_version") if isinstance(found, dict) else found
        if found is not None and version != SCHEMA_VERSION:
            raise UserError(
                f"store {self.uri} has schema version {version!r}, this program needs "
                f"{SCHEMA_VERSION}; choose another store or move the old one away"
            )
        # Written even if it is there: this is the proof that the store can be written.
        document = json.dumps({"schema_version": SCHEMA_VERSION})
        self.write_text("store.json", document + "\n")
        if is_local(self.filesystem):
            with writing_to(self.uri):
                use(Path(self.root, IN_USE))
            here = Path(self.root)
            # Also those of artifacts that another process has published since. A path's own glob
            # fails where another process removes a folder meanwhile.
            artifacts = glob(f"{escape(self.root)}/*/*/{TEMPORARY}")  # noqa: PTH207
            for folder in (here / TEMPORARY, *map(Path, artifacts)):
                sweep(folder)

    def write_text(self, name: str, text: str) -> str:
        """Write a document that is no artifact, in the place of an older one; its URI."""
        target = f"{self.root}/{name}"
        if is_local(self.filesystem):
            folder = TemporaryFolder(Path(self.root, TEMPORARY))
            with writing_to(target), closing(folder):
                path = folder.new_path(PurePosixPath(name).name)
                path.write_text(text, encoding="utf-8")
                put_in_place(path, Path(target))
        else:
            with reaching(self.filesystem, target):
                self.filesystem.pipe_file(target, text.encode())
        return f"{self.uri}/{name}"

    def read_json(self, name: str) -> Any | None:
        """A JSON document that is no artifact; None if there is none."""
        return read_json(self.filesystem, f"{self.root}/{name}")

    def find(self, stage: str, key: str) -> ArtifactRef | None:
        """The published artifact of this stage and key, or None."""
        uri = f"{self.uri}/{stage}/{key}"
        manifest = read_manifest(self.filesystem, f"{self.root}/{stage}/{key}")
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

    def draft(self, stage: str, key: str) -> ArtifactWriter:
        """Start or continue an unpublished artifact."""
        kind = LocalArtifactWriter if is_local(self.filesystem) else RemoteArtifactWriter
        return kind(stage, key, self.filesystem, f"{self.root}/{stage}/{key}")
