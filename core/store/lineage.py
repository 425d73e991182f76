"""`hermesflow store lineage`: the way from an artifact back to the pool, as a tree."""

from __future__ import annotations

from core.errors import UserError
from core.store import Store
from core.store.inventory import Entry, Place, show_bytes, take_inventory


def lineage(store: Store, artifact: str) -> str:
    """The tree of what an artifact was made from.

    `artifact` is its URI, at whatever place the store was then, or `STAGE/KEY`, of which the first
    digits are enough. What occurs again is not followed again.
    """
    entries = take_inventory(store)
    entry = _chosen(entries, artifact)
    lines = [_line(entry)]
    _descend(entries, entry, "", lines, {entry.place})
    return "\n".join(lines)


def _chosen(entries: dict[Place, Entry], artifact: str) -> Entry:
    stage, _, key = "/".join(artifact.rstrip("/").split("/")[-2:]).partition("/")
    found = [
        entry
        for entry in entries.values()
        if entry.manifest is not None and entry.stage == stage and entry.key.startswith(key)
    ]
    if len(found) != 1:
        stages = sorted({entry.stage for entry in entries.values()})
        raise UserError(
            f"artifact {artifact!r} names {len(found)} artifacts of the store; give its URI or "
            f"STAGE/KEY with more digits; stages: {', '.join(stages) or 'none'}"
        )
    return found[0]


def _descend(
    entries: dict[Place, Entry], entry: Entry, margin: str, lines: list[str], seen: set[Place]
) -> None:
    inputs = list(entry.inputs())
    for number, (name, place) in enumerate(inputs, 1):
        last = number == len(inputs)
        branch = f"{margin}{'└─' if last else '├─'} {name}: "
        below = entries.get(place)
        if below is None or below.manifest is None:
            lines.append(f"{branch}{place[0]}/{place[1][:8]}  not in this store")
        elif place in seen:
            lines.append(f"{branch}{below.name}  as above")
        else:
            seen.add(place)
            lines.append(branch + _line(below))
            _descend(entries, below, margin + ("   " if last else "│  "), lines, seen)


def _line(entry: Entry) -> str:
    assert entry.manifest is not None
    manifest = entry.manifest
    size = show_bytes(sum(file["size"] for file in manifest["files"].values()))
    return f"{entry.name}  {size}, {manifest['seconds']:.1f} s, digest {manifest['digest'][:8]}"
