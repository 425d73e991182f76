"""The artifact store: finished stages under `<root>/<stage>/<key>/`, local or remote.

An artifact exists if and only if its manifest does; the manifest is written last.
"""

import json
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

from core.artifact import MANIFEST, Artifact, ArtifactRef, checked_manifest
from core.draft import SCHEMA_VERSION, TEMPORARY, Draft, LocalDraft, RemoteDraft
from core.errors import UserError
from core.files import TemporaryFolder, put_in_place, sweep, writing_to
from core.remote import connect, is_local, reaching, read_json


class Store:
    """Artifacts below one fsspec URI or plain local path."""

    def __init__(self, uri: str) -> None:
        self._filesystem, self._root = connect(uri)
        self.uri = self._filesystem.unstrip_protocol(self._root)

    def check(self) -> None:
        """Make the store if needed; UserError if it cannot be written or has another version."""
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
        if is_local(self._filesystem):
            sweep(Path(self._root, TEMPORARY))
        self.write_text("store.json", document + "\n")

    def write_text(self, name: str, text: str) -> str:
        """Write a document that is no artifact, in the place of an older one; its URI."""
        target = f"{self._root}/{name}"
        if is_local(self._filesystem):
            folder = TemporaryFolder(Path(self._root, TEMPORARY))
            with writing_to(target), closing(folder):
                path = folder.new_path(PurePosixPath(name).name)
                path.write_text(text, encoding="utf-8")
                put_in_place(path, Path(target))
        else:
            with reaching(self._filesystem, target):
                self._filesystem.pipe_file(target, text.encode())
        return f"{self.uri}/{name}"

    def read_json(self, name: str) -> Any | None:
        """A JSON document that is no artifact; None if there is none."""
        return read_json(self._filesystem, f"{self._root}/{name}")

    def find(self, stage: str, key: str) -> ArtifactRef | None:
        """The published artifact of this stage and key, or None."""
        uri = f"{self.uri}/{stage}/{key}"
        manifest = read_json(self._filesystem, f"{self._root}/{stage}/{key}/{MANIFEST}")
        if manifest is None:
            return None
        return ArtifactRef(stage, key, uri, checked_manifest(manifest, uri)["digest"])

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

    def draft(self, stage: str, key: str) -> Draft:
        """Start or continue an unpublished artifact."""
        kind = LocalDraft if is_local(self._filesystem) else RemoteDraft
        return kind(stage, key, self._filesystem, f"{self._root}/{stage}/{key}")
