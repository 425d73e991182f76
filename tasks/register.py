"""Stage `register`: judge a checkpoint by the gate, and register it in MLflow.

The decision is an artifact, cached like any other. The registry is a view of it that may be lost:
a version that is not there (any more) is registered again from the cached decision, one that is
there is left as it is.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import pyarrow as pa

from core.artifact import Artifact, ArtifactRef
from core.command import stage_command
from core.config import Config
from core.errors import UserError
from core.stage import (
    Inputs,
    Stage,
    StageContext,
    StageResult,
    as_lists,
    declared_config,
    run_stage,
)
from core.store import Store
from data.tables import read_table
from evals.gate import judge, same_records
from tasks._tracking.registry import Registry, Version, open_registry
from tasks._tracking.runs import flatten

RESULT = "registration.json"
WEIGHTS = "model/model.safetensors"
FIRST = "first version"
SCORES = ("understanding", "generation", "gap")
# What may differ between two evaluations whose record metrics still mean the same.
UNIMPORTANT = {
    "seed",
    "evaluation.bootstrap_samples",
    "evaluation.confidence",
    "sampling.shard_records",
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registration:
    """What became of a checkpoint; `version` is None if MLflow could not be had."""

    ref: ArtifactRef
    cached: bool
    promoted: bool
    reason: str
    version: str | None


def _body(context: StageContext) -> Mapping[str, object]:
    checkpoint, evaluation = context.input("checkpoint"), context.input("evaluation")
    document: dict[str, Any] = {
        "promote": True,
        "reason": FIRST,
        "scores": _scores(evaluation),
        "checkpoint": asdict(checkpoint.ref),
        "sha256": checkpoint.manifest["files"][WEIGHTS]["sha256"],
        "evaluation": asdict(evaluation.ref),
        "baseline": None,
    }
    if context.inputs["baseline"]:
        baseline = context.input("baseline")
        config = context.config
        decision = judge(
            _records(evaluation), _records(baseline), config.gate, config.evaluation, context.seed
        )
        document |= asdict(decision) | {"baseline": asdict(baseline.ref)}
    with context.draft.write(RESULT) as path:
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return {"promote": document["promote"], "reason": document["reason"]}


REGISTER = Stage(
    "register",
    1,
    reads=("seed", "gate", "evaluation.bootstrap_samples", "evaluation.confidence"),
    inputs=("checkpoint", "evaluation", "baseline"),
    body=_body,
)


def register(
    config: Config,
    store: Store,
    checkpoint: ArtifactRef,
    evaluation: ArtifactRef,
    baseline: ArtifactRef | None,
    *,
    run_id: str = "",
    registry: Registry | None = None,
) -> Registration:
    """Judge a checkpoint against the champion, and register it unless that is done already.

    `baseline` is the evaluation to compare with where there is no champion that was judged on the
    same records with the same settings; None for the base checkpoint itself. `run_id` is that of
    the MLflow run that made the checkpoint; a registry that is open already spares a connection.
    """
    registry = registry or open_registry(config.tracking)
    version = registry.find(_registration_key(config, checkpoint, evaluation))
    if version is None:
        opponent, note = _choose_opponent(registry, store, evaluation, baseline)
    else:
        # Judged before, maybe the champion itself by now: the decision on record stands.
        opponent, note = _opponent_on_record(store, version, baseline), ""
    inputs: Inputs = {
        "checkpoint": checkpoint,
        "evaluation": evaluation,
        "baseline": [] if opponent is None else [opponent],
    }
    result = run_stage(REGISTER, config, store, inputs)
    document = json.loads(store.open(result.ref).path(RESULT).read_text(encoding="utf-8"))
    if version is None:
        document["reason"] += note
        # A checkpoint whose weights were deleted has nothing to be served.
        whole = registry.open and not store.open(checkpoint).freed
        version = _make_version(registry, config, result.ref, document, run_id) if whole else None
    if version is not None:
        document["promote"] = version.tags["promoted"] == "true"
        document["reason"] = version.tags["reason"]
        registry.set_aliases(version, promote=document["promote"])
    logger.info("%s: %s", checkpoint.uri, document["reason"])
    return Registration(
        result.ref,
        result.cached,
        document["promote"],
        document["reason"],
        version.number if version else None,
    )


def is_registered(
    config: Config, registry: Registry, checkpoint: ArtifactRef, evaluation: ArtifactRef
) -> bool:
    """Whether there is nothing left to do for `register`."""
    return registry.find(_registration_key(config, checkpoint, evaluation)) is not None


def register_stage(
    stage: Stage,
    config: Config,
    store: Store,
    inputs: Inputs,
    run_id: str = "",
    *,
    warn: bool = True,
) -> StageResult:
    """`register` as a stage like others, by the names of its inputs.

    `warn` is off where the self-play says that MLflow cannot be had.
    """
    started = time.monotonic()
    given = as_lists(stage, inputs)
    for name in ("checkpoint", "evaluation"):
        if len(given[name]) != 1:
            raise UserError(
                f"stage {stage.name}: input {name} has {len(given[name])} artifacts; give one"
            )
    baseline = given["baseline"][0] if given["baseline"] else None
    judged = given["checkpoint"][0], given["evaluation"][0]
    registry = open_registry(config.tracking, warn=warn)
    done = register(config, store, *judged, baseline, run_id=run_id, registry=registry)
    return StageResult(done.ref, done.cached, time.monotonic() - started)


def _registration_key(config: Config, checkpoint: ArtifactRef, evaluation: ArtifactRef) -> str:
    # With the URI, so that a store that has moved is registered at its new place.
    parts = [
        declared_config(REGISTER, config),
        checkpoint.uri,
        checkpoint.digest,
        evaluation.digest,
    ]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _choose_opponent(
    registry: Registry, store: Store, evaluation: ArtifactRef, baseline: ArtifactRef | None
) -> tuple[ArtifactRef | None, str]:
    """The evaluation to beat (None: first version), and a remark if it is not the champion's."""
    champion = registry.champion()
    if champion is None:
        # In this order: a registry that was lost on asking is not known to be empty.
        first = registry.empty() and registry.open
        return (None if first else baseline), ""
    problem = ""
    try:
        own, other = store.open(evaluation), Artifact(champion.tags["evaluation_uri"])
        if other.ref.digest != champion.tags["evaluation_digest"]:
            problem = "was made anew meanwhile"
        elif not _comparable(own, other):
            problem = "was made on other records or with other settings"
        else:
            return other.ref, ""
    except (UserError, OSError, KeyError):
        problem = "is gone"
    remark = (
        f" (compared with the base evaluation of this run, since the evaluation of the champion, "
        f"version {champion.number}, {problem})"
    )
    # A base without a baseline is its own.
    return baseline or evaluation, remark


def _opponent_on_record(
    store: Store, version: Version, baseline: ArtifactRef | None
) -> ArtifactRef | None:
    uri = version.tags["compared_with"]
    if not uri:
        return None
    try:
        return store.open(uri).ref
    except (UserError, OSError):
        return baseline


def _comparable(own: Artifact, other: Artifact) -> bool:
    """Whether two evaluations asked the same about the same records."""
    return _terms(own) == _terms(other) and same_records(
        _records(own, ["record_id"]), _records(other, ["record_id"])
    )


def _terms(evaluation: Artifact) -> list[object]:
    """All that an evaluation depends on, apart from the checkpoint that was judged."""
    manifest = evaluation.manifest
    settings = flatten(manifest["config"])
    # The base checkpoint has a say only where it is the judge.
    silent = (
        {"checkpoint"} if settings.get("evaluation.judge") == "base" else {"checkpoint", "base"}
    )
    digests = {
        name: [ref["digest"] for ref in refs]
        for name, refs in manifest["inputs"].items()
        if name not in silent
    }
    weighty = {name: value for name, value in settings.items() if name not in UNIMPORTANT}
    return [manifest["stage_version"], weighty, digests]


def _records(evaluation: Artifact, columns: Sequence[str] | None = None) -> pa.Table:
    return read_table(evaluation.path("records.parquet"), "record_metrics", columns)


def _scores(evaluation: Artifact) -> dict[str, float]:
    table = read_table(evaluation.path("metrics.parquet"), "metrics")
    values = {row["name"]: row["value"] for row in table.to_pylist() if row["group"] == "all"}
    return {name: values[name] for name in SCORES}


def _make_version(
    registry: Registry, config: Config, ref: ArtifactRef, document: Mapping[str, Any], run_id: str
) -> Version | None:
    checkpoint, evaluation = (
        ArtifactRef(**document[name]) for name in ("checkpoint", "evaluation")
    )
    scores = {name: f"{value:.4f}" for name, value in document["scores"].items()}
    baseline = document["baseline"]
    tags = {
        "promoted": json.dumps(document["promote"]),
        "reason": document["reason"],
        **scores,
        "store_uri": checkpoint.uri,
        "digest": checkpoint.digest,
        "sha256": document["sha256"],
        "evaluation_uri": evaluation.uri,
        "evaluation_digest": evaluation.digest,
        "compared_with": baseline["uri"] if baseline else "",
        "registration_uri": ref.uri,
    }
    description = (
        f"{document['reason']}\n\n"
        f"U {scores['understanding']}, G {scores['generation']}, gap {scores['gap']} on held-out "
        f"records. Weights stay at {checkpoint.uri}; self-play seed {config.seed}."
    )
    key = _registration_key(config, checkpoint, evaluation)
    return registry.register(key, tags, description, _served(config, checkpoint), run_id)


def _served(config: Config, checkpoint: ArtifactRef) -> dict[str, Any]:
    """What opens the registered checkpoint; without a device it takes a GPU if there is one."""
    captions, images = config.sampling.captions, config.sampling.images
    text = captions.settings[0]
    return {
        "uri": checkpoint.uri,
        "digest": checkpoint.digest,
        "family": config.model.family,
        "device": None,
        "sampling": {
            "text": {
                "temperature": text.temperature,
                "top_k": text.top_k,
                "max_new_tokens": captions.max_new_tokens,
            },
            "image": {
                "steps": images.steps,
                "guidance": images.guidance,
                "temperature": images.temperature,
            },
        },
    }


if __name__ == "__main__":
    sys.exit(stage_command({"register": REGISTER}, run=register_stage))
