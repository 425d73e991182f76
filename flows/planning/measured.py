"""How fast earlier runs were, from the manifests of a store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from core.config import Config
from core.store import Store
from core.store.inventory import Entry, Place, take_inventory
from flows.planning.devices import Devices
from flows.planning.work import Model, Work, changed, works

MODEL_CONFIG = "model/config.json"


@dataclass
class Measured:
    """What a stage has done in earlier runs, added up."""

    flops: float = 0.0
    records: int = 0
    seconds: float = 0.0
    """Of one device."""
    disk: float = 0.0
    runs: int = 0


Entries = Mapping[Place, Entry]


def entries_of(config: Config) -> Entries:
    """All that the store of a config has; nothing, if there is no store yet."""
    store = Store(config.store)
    return {} if store.read_json("store.json") is None else take_inventory(store)


def measured(
    config: Config, model: Model, devices: Devices, entries: Entries
) -> Mapping[str, Measured]:
    """Of each stage, what runs with the config's model on such devices took.

    The names are those of `works`.
    """
    found: dict[str, Measured] = defaultdict(Measured)
    digest = sha256(Path(config.model.checkpoint, "config.json").read_bytes()).hexdigest()
    for entry in entries.values():
        if entry.manifest is None or not _is_like(entry, entries, digest, devices):
            continue
        for work in _done(entry, entries, config, model):
            one = found[work.stage]
            hardware = entry.manifest["hardware"]
            one.flops += work.amount.flops
            one.records += work.records
            one.seconds += entry.manifest["seconds"] * hardware["count"]
            one.disk += sum(entry.sizes.values())
            one.runs += 1
    return found


def _is_like(entry: Entry, entries: Entries, digest: str, devices: Devices) -> bool:
    """Whether it was made on such devices, and by this model if by any."""
    manifest = entry.manifest or {}
    hardware = manifest.get("hardware")
    if not hardware or not devices.matches(hardware["device"]):
        return False
    for place in _inputs(entry, "checkpoint", "base"):
        files = (_manifest(entries, place) or {}).get("files", {})
        if files.get(MODEL_CONFIG, {}).get("sha256") != digest:
            return False
    return True


def _done(entry: Entry, entries: Entries, config: Config, model: Model) -> Iterator[Work]:
    """The work of one run: that of a plan with its config and its records."""
    manifest = entry.manifest or {}
    pool, learnt, test = (
        next((_manifest(entries, place) for place in _inputs(entry, name)), None)
        for name in ("pool", "pairs", "test")
    )
    made = learnt["results"] if learnt else {}
    kind = next((one for one in ("groups", "pairs") if one in made), "pool")
    try:
        then = changed(config, manifest["config"])
    except ValidationError:
        return  # of another version of the config
    name = entry.stage
    if name == "benchmark":
        name = f"benchmark {manifest['config']['benchmarks'][0]['name']}"
    if learnt and name in ("reference", "train") and then.training.objective.learns_from != kind:
        return  # of another objective, which the config of a reference does not tell
    counted = "records" if kind == "pool" else kind
    base = _count(learnt, counted) if learnt else _count(pool, "records")
    for work in works(then, model, base, _count(test, "records"), 1.0):
        if work.stage == name:
            yield work


def _inputs(entry: Entry, *names: str) -> Iterator[Place]:
    return (place for name, place in entry.inputs() if name in names)


def _manifest(entries: Entries, place: Place) -> Mapping[str, Any] | None:
    entry = entries.get(place)
    return entry.manifest if entry else None


def _count(manifest: Mapping[str, Any] | None, name: str) -> int:
    return int(manifest["results"].get(name, 0)) if manifest else 0


def pairs_share(entries: Entries) -> float | None:
    """The share of the records that made a pair in earlier runs; None: there was none."""
    results = [
        entry.manifest["results"]
        for entry in entries.values()
        if entry.stage == "pair" and entry.manifest and "records" in entry.manifest["results"]
    ]
    records = sum(one["records"] for one in results)
    return sum(one["pairs"] for one in results) / records if records else None
