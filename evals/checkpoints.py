"""Checkpoints by what a user has of them: a model folder, or an artifact of a store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.artifact import MANIFEST, Artifact, content_digest
from core.config import Config
from core.errors import UserError
from core.files import sha256_of

if TYPE_CHECKING:
    from models.protocol import UnifiedModel


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
