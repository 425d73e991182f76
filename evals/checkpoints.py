"""What commands of this room take and write: checkpoints, and folders of evaluations.

A checkpoint is a model folder, or an artifact of a store; a folder is continued after a kill.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.artifact import MANIFEST, Artifact, content_digest
from core.artifact_writer import ArtifactWriter, LocalArtifactWriter
from core.config import Config
from core.errors import UserError
from core.files import sha256_of
from core.remote import connect, is_local

if TYPE_CHECKING:
    from models.protocol import UnifiedModel

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Checkpoint:
    """A model folder, and a digest of its content."""

    name: str
    folder: Path
    digest: str


def open_checkpoint(place: str | Path) -> Checkpoint:
    """The checkpoint at a folder with a config.json, or in an artifact that is named by its URI."""
    text = str(place)
    if "://" in text or (Path(text) / MANIFEST).is_file():
        artifact = Artifact(text)
        return Checkpoint(text, artifact.path("model"), artifact.ref.digest)
    folder = Path(text)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{text} is no checkpoint: it has no config.json, nor a {MANIFEST}; give the folder of "
            "a model, or the URI of an artifact that holds one"
        )
    files = {
        file.relative_to(folder).as_posix(): sha256_of(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    return Checkpoint(text, folder, content_digest(files))


def open_model(config: Config, folder: Path, family: str | None = None) -> UnifiedModel:
    """The model in a folder as a config has it run: its precision, on its device and threads."""
    from models.registry import load_model, use_threads  # here, since torch takes seconds

    use_threads(config.runtime.threads)
    model, device = config.model, config.runtime.device
    return load_model(family or model.family, folder, device, model.precision)


def is_finished(folder: Path) -> bool:
    """Whether an evaluation has ended in this folder."""
    return (folder / MANIFEST).is_file()


@contextmanager
def outcome(folder: Path, name: str, settings: Mapping[str, Any]) -> Iterator[ArtifactWriter]:
    """The draft of an evaluation in `folder`, with the parts that an earlier one has left there.

    UserError if those were made with other settings: figures of two evaluations must not mix.
    """
    filesystem, root = connect(str(folder))
    if not is_local(filesystem):
        raise UserError(f"--to {folder} is not on this machine; give a local folder")
    text = json.dumps(settings, indent=2, sort_keys=True, default=str) + "\n"
    key = sha256(f"{name}\n{text}".encode()).hexdigest()
    with LocalArtifactWriter(name, key, filesystem, root) as draft:
        if draft.has(SETTINGS):
            _compare(folder, json.loads(draft.path(SETTINGS).read_text(encoding="utf-8")), text)
        elif draft.names():
            raise UserError(f"--to {folder} holds other files; give a new folder")
        else:
            with draft.write(SETTINGS) as path:
                path.write_text(text, encoding="utf-8")
        yield draft


def _compare(folder: Path, before: Mapping[str, Any], text: str) -> None:
    now = json.loads(text)
    changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
    if changed:
        first = changed[0]
        raise UserError(
            f"--to {folder} holds an evaluation with other settings: {first} was "
            f"{before.get(first)!r} and is {now.get(first)!r}; give another folder"
        )
