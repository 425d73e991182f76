"""All that lies in a store: finished artifacts, and what was begun and not finished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from core.artifact import MANIFEST, read_manifest
from core.errors import UserError
from core.remote import reaching
from core.store import Store

Place = tuple[str, str]  # stage and key
REPORTS = "reports"  # documents, no artifacts


@dataclass
class Entry:
    """What lies below `<stage>/<key>`: sizes of files by name, and the manifest if there is one."""

    stage: str
    key: str
    sizes: dict[str, int] = field(default_factory=dict)
    manifest: Mapping[str, Any] | None = None
    problem: str = ""  # of a manifest that cannot be read

    @property
    def place(self) -> Place:
        """Stage and key."""
        return self.stage, self.key

    @property
    def name(self) -> str:
        """How it is shown: `train/1a2b3c4d`."""
        return f"{self.stage}/{self.key[:8]}"

    @property
    def retention(self) -> str | None:
        """What its stage says may become of it; None for a draft."""
        return None if self.manifest is None else self.manifest.get("retention", "kept")

    def inputs(self) -> Iterator[tuple[str, Place]]:
        """What it was made from: name of the input, and its place wherever the store is now."""
        for name, refs in (self.manifest or {}).get("inputs", {}).items():
            for ref in refs:
                yield name, (ref["stage"], ref["key"])


def take_inventory(store: Store) -> dict[Place, Entry]:
    """Every artifact and draft of a store; UserError if there is no store."""
    if store.read_json("store.json") is None:
        raise UserError(
            f"{store.uri} is no store: it has no store.json; give the store of a config"
        )
    with reaching(store.filesystem, store.root):
        found = store.filesystem.find(store.root, detail=True)
    entries: dict[Place, Entry] = {}
    for path, info in found.items():
        parts = PurePosixPath(path).relative_to(store.root).parts
        if len(parts) > 2 and parts[0] != REPORTS:
            stage, key = parts[:2]
            entry = entries.setdefault((stage, key), Entry(stage, key))
            entry.sizes["/".join(parts[2:])] = info["size"]
    for entry in entries.values():
        if MANIFEST in entry.sizes:
            try:
                entry.manifest = read_manifest(
                    store.filesystem, f"{store.root}/{entry.stage}/{entry.key}"
                )
            except UserError as error:
                entry.problem = str(error)
    return entries


def show_bytes(size: int) -> str:
    """A size as people read it."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
