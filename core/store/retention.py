"""`hermesflow store gc`: frees what no kept checkpoint needs.

A manifest stays where it is, so that a self-play still finds what it has done and goes on, and
lineage can still be walked; of the files that are gone `freed.json` has the names.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.artifact import FREED
from core.errors import UserError
from core.files import unused
from core.ours import ours_first
from core.remote import is_local, reaching
from core.store import IN_USE, Store
from core.store.inventory import Entry, Place, show_bytes, take_inventory

WEIGHTS = ("model/", "adapter/")  # of a checkpoint


@dataclass(frozen=True)
class Freeable:
    """Files of one artifact that nothing kept needs, or a whole draft (`finished` is false)."""

    entry: Entry
    names: tuple[str, ...]
    size: int
    why: str

    @property
    def finished(self) -> bool:
        """Whether its manifest stays."""
        return self.entry.manifest is not None


def gc(
    store: Store,
    *,
    delete: bool = False,
    unfinished: bool = False,
    registry: str | None = None,
    nothing_runs: bool = False,
) -> str:
    """List what can be freed, with sizes; free it if `delete`.

    Registered checkpoints are those whose digests the module `registry` prints or, without one, all
    that were judged for registration. UserError if it cannot be asked, or if the store is in use: a
    remote one has no lock, so `nothing_runs` has to say so.
    """
    entries = take_inventory(store)
    registered = None if registry is None else _registered(registry)
    found = freeable(entries, registered, unfinished=unfinished)
    lines = [f"{show_bytes(f.size):>10}  {f.entry.name:30}  {f.why}" for f in found]
    total = f"{show_bytes(sum(f.size for f in found)):>10}  in {len(found)} artifacts"
    if not delete:
        return "\n".join([*lines, f"{total} can be freed; --delete does it"])
    with _nobody(store, nothing_runs):
        # Looked at again, since a run may have ended meanwhile.
        found = freeable(take_inventory(store), registered, unfinished=unfinished)
        for one in found:
            _free(store, one)
    return "\n".join([*lines, f"{total} freed"])


def freeable(
    entries: Mapping[Place, Entry], registered: set[str] | None, *, unfinished: bool
) -> list[Freeable]:
    """What no kept checkpoint needs; `registered` are digests, None: all that were judged.

    Kept are registered checkpoints and those that no later one was trained from, with all that
    their own iteration has made for them.
    """
    trained = {place for place, e in entries.items() if e.retention == "checkpoint"}
    parents = {place: dict(entries[place].inputs()).get("checkpoint") for place in trained}
    superseded = trained.intersection(parents.values())
    last = trained - superseded
    judged = {
        place
        for e in entries.values()
        if e.retention == "verdict"
        for name, place in e.inputs()
        if name == "checkpoint"
    }
    needed = {place for one in last for place in _iteration(entries, one)}
    made = {place for one in superseded for place in _iteration(entries, one)} - needed
    found = []
    for place, entry in sorted(entries.items()):
        if entry.manifest is None:
            if unfinished and not entry.problem:
                size = sum(entry.sizes.values())
                found.append(Freeable(entry, tuple(entry.sizes), size, "unfinished"))
        elif place in made and entry.retention == "intermediate":
            found.append(_of(entry, "", "its checkpoint is trained, and a later one after it"))
        elif place in superseded:
            digest = entry.manifest["digest"]
            kept = place in judged if registered is None else digest in registered
            if not kept:
                why = "a later checkpoint was trained from it, and it is not registered"
                found.append(_of(entry, WEIGHTS, why))
    return [one for one in found if one.size]


def _iteration(entries: Mapping[Place, Entry], checkpoint: Place) -> Iterator[Place]:
    """What a checkpoint was made from, up to the checkpoint before it."""
    waiting, seen = [checkpoint], {checkpoint}
    while waiting:
        entry = entries.get(waiting.pop())
        for name, place in entry.inputs() if entry else ():
            if name not in ("checkpoint", "previous") and place not in seen:
                seen.add(place)
                waiting.append(place)
                yield place


def _of(entry: Entry, prefix: str | tuple[str, ...], why: str) -> Freeable:
    """Files of an artifact below `prefix` that are still there."""
    assert entry.manifest is not None
    files = {n: f for n, f in entry.manifest["files"].items() if n.startswith(prefix)}
    there = {n: f["size"] for n, f in files.items() if _objects(entry, n)}
    return Freeable(entry, tuple(sorted(files)), sum(there.values()), why)


def _objects(entry: Entry, name: str) -> list[str]:
    """The files that hold a part: itself, or on a remote store all its versions."""
    return [other for other in entry.sizes if other == name or other.startswith(f"{name}/")]


def _free(store: Store, one: Freeable) -> None:
    root = f"{store.root}/{one.entry.stage}/{one.entry.key}"
    if not one.finished:
        with reaching(store.filesystem, root):
            store.filesystem.rm(root, recursive=True)
        return
    before = store.read_json(f"{one.entry.stage}/{one.entry.key}/{FREED}") or []
    # First, so that an artifact never lacks files that nobody has taken.
    store.write_text(
        f"{one.entry.stage}/{one.entry.key}/{FREED}",
        json.dumps(sorted({*before, *one.names})) + "\n",
    )
    with reaching(store.filesystem, root):
        for name in one.names:
            for path in _objects(one.entry, name):
                store.filesystem.rm_file(f"{root}/{path}")


@contextmanager
def _nobody(store: Store, nothing_runs: bool) -> Iterator[None]:
    """Refuse if a run works with the store, and let none begin meanwhile."""
    if not is_local(store.filesystem):
        if not nothing_runs:
            raise UserError(
                f"{store.uri} has no lock that would show whether a run works with it; end all "
                "and add --nothing-runs"
            )
        yield
        return
    with unused(Path(store.root, IN_USE)) as free:
        if not free:
            raise UserError(
                f"{store.uri} is in use by a run on this machine or one that shares the folder; "
                "wait for its end, or stop it (it goes on later where it was)"
            )
        yield


def _registered(registry: str) -> set[str]:
    """Digests of all checkpoints that the registry names."""
    command = [sys.executable, "-P", "-m", registry]
    done = subprocess.run(command, capture_output=True, text=True, env=ours_first(), check=False)
    if done.returncode != 0:
        problem = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"which checkpoints are registered cannot be told: {problem.removeprefix('error: ')}; "
            "set MLFLOW_TRACKING_URI to a server that answers, and the login that it asks for (of "
            "the local one: `source .hermesflow/env`), or add --without-registry, which keeps "
            "every checkpoint that was judged"
        )
    return set(json.loads(done.stdout))
