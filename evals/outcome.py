"""The folder that an evaluation from the command line writes: continued after a kill, then read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from core.artifact import MANIFEST
from core.artifact_writer import ArtifactWriter, LocalArtifactWriter
from core.errors import UserError
from core.remote import connect, is_local

SETTINGS = "settings.json"


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
