"""From a judged checkpoint to a version of the registered model.

Finds the opponent, has stage `gate` decide, and publishes. The decision is an artifact, cached like
any other; the registry is a view of it that may be lost. A version that is not there (any more) is
published again from the cached decision, one that is there is left as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from json import loads
from typing import Any

from core.artifact import Artifact, ArtifactRef
from core.config import Config
from core.errors import UserError
from core.settings import leaves
from core.stage import Inputs
from core.store import Store
from data.tables import read_table
from evals.gate import comparable
from tasks.gate import read_decision
from tracking.publishing import Scores, find_published, publish
from tracking.registry import Registry, Version

# What may differ between two evaluations whose record metrics still mean the same.
UNIMPORTANT = {
    "seed",
    "evaluation.bootstrap_samples",
    "evaluation.confidence",
    "sampling.shard_records",
    # Read for a judge that has a model of its own; others do not depend on them.
    "evaluation.reader.networks",
    "evaluation.reader.pictures",
}
LEARNING = ("reader", "nearest", "encoder")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registration:
    """What became of a checkpoint; `version` is None if MLflow could not be had."""

    promoted: bool
    reason: str
    version: str | None


@dataclass(frozen=True)
class _Note:
    """What has to be said of a comparison; `promote` is set where there is none to decide it."""

    text: str = ""
    promote: bool | None = None


def register(
    config: Config,
    registry: Registry,
    checkpoint: ArtifactRef,
    scores: Scores,
    baseline: Scores | None,
    run_gate: Callable[[Inputs], ArtifactRef],
    run_id: str = "",
) -> Registration:
    """Judge a checkpoint against the champion, and publish it unless that is done already.

    `baseline` are the scores to compare with where there is no champion that was judged on the
    same records with the same settings; None for the base checkpoint itself. `run_gate` gives the
    artifact of stage `gate` for its inputs.
    """
    version = find_published(registry, config, checkpoint, scores)
    if version is not None:
        # Judged before, maybe the champion itself by now: the decision on record stands.
        return _registered(version)
    store = Store(config.store)
    opponent, note = _opponent(registry, store, checkpoint, scores, baseline)
    gate = run_gate(
        {
            "checkpoint": checkpoint,
            "evaluation": scores.evaluation,
            "benchmarks": scores.benchmarks,
            "baseline": [opponent.evaluation] if opponent else [],
            "baseline_benchmarks": opponent.benchmarks if opponent else [],
        }
    )
    decision = _noted(read_decision(store.open(gate)), note)
    version = publish(registry, config, checkpoint, scores, opponent, gate, decision, run_id)
    logger.info("%s: %s", checkpoint.uri, decision["reason"])
    if version is not None:
        return _registered(version)
    return Registration(decision["promote"], decision["reason"], None)


def _registered(version: Version) -> Registration:
    promoted = version.tags["promoted"] == "true"
    return Registration(promoted, version.tags["reason"], version.number)


def _noted(decision: Mapping[str, Any], note: _Note) -> dict[str, Any]:
    if note.promote is None:
        return {**decision, "reason": decision["reason"] + note.text}
    # An own figure that bars a first version bars this one, too.
    if not decision["promote"]:
        return dict(decision)
    return {**decision, "promote": note.promote, "reason": note.text}


def _opponent(
    registry: Registry,
    store: Store,
    checkpoint: ArtifactRef,
    scores: Scores,
    baseline: Scores | None,
) -> tuple[Scores | None, _Note]:
    """The scores to beat (None: there are none), and a remark if they are not the champion's."""
    champion = registry.champion()
    if champion is None:
        # In this order: a registry that was lost on asking is not known to be empty.
        first = registry.empty() and registry.open
        return (None if first else baseline), _Note()
    if champion.tags.get("digest") == checkpoint.digest:
        # A version says nothing about itself.
        text = f"the champion already, version {champion.number}, judged anew"
        return None, _Note(text, promote=True)
    try:
        own, other = store.open(scores.evaluation), Artifact(champion.tags["evaluation_uri"])
        if other.ref.digest != champion.tags["evaluation_digest"]:
            problem = "was made anew meanwhile"
        else:
            problem = _difference(own, other)
        if not problem:
            return Scores(other.ref, _benchmarks_on_record(champion)), _Note()
    except (UserError, OSError, KeyError):
        problem = "is gone"
    since = f"since the evaluation of the champion, version {champion.number}, {problem}"
    if baseline is None:
        return None, _Note(f"not promoted: not compared with anything, {since}", promote=False)
    return baseline, _Note(f" (compared with the base evaluation of this run, {since})")


def _benchmarks_on_record(version: Version) -> list[ArtifactRef]:
    """The results of a version's benchmarks, without those that are gone or made anew."""
    found = []
    for uri, digest in loads(version.tags.get("benchmarks", "{}")).items():
        with suppress(UserError, OSError):
            ref = Artifact(uri).ref
            if ref.digest == digest:
                found.append(ref)
    return found


def _difference(own: Artifact, other: Artifact) -> str:
    """What keeps two evaluations from being compared; empty if they asked the same.

    They differ in what an evaluation depends on, apart from the checkpoint that was judged.
    """
    mine, theirs = own.manifest, other.manifest
    if mine["stage_version"] != theirs["stage_version"]:
        return "was made by another version of the program"
    now, then = (leaves(manifest["config"]) for manifest in (mine, theirs))
    changed = [
        f"{name} {then.get(name)!r} instead of {now.get(name)!r}"
        for name in sorted({*now, *then} - UNIMPORTANT)
        if now.get(name) != then.get(name)
    ]
    kind = str(now.get("evaluation.judge"))
    # The base has a say only where it is the judge, and what was learnt where something was.
    silent = {"checkpoint"} | ({"base"} - ({"base"} if kind == "base" else set()))
    silent |= set() if kind in LEARNING else {"judge"}
    changed += [
        f"another {name}"
        for name in sorted({*mine["inputs"], *theirs["inputs"]} - silent)
        if _digests(mine, name) != _digests(theirs, name)
    ]
    if changed:
        return f"differs from this one: {', '.join(changed)}"
    tables = (read_table(one.path("records.parquet"), "record_metrics") for one in (own, other))
    return "" if comparable(*tables) else "was made on other records"


def _digests(manifest: Mapping[str, Any], name: str) -> list[str]:
    return [ref["digest"] for ref in manifest["inputs"].get(name, [])]
