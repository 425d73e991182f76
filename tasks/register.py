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
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import pyarrow as pa

from core.artifact import Artifact, ArtifactRef
from core.benchmarks import BenchmarkName
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
from evals.benchmarks.changes import BenchmarkChange, benchmark_change
from evals.gate import JudgedBy, comparable, judge
from tasks._tracking.registry import Registry, Version, open_registry
from tasks._tracking.runs import flatten

RESULT = "registration.json"
WEIGHTS = "model/model.safetensors"
FIRST = "first version"
UNREADABLE = (
    "not promoted: first version, but its answers about real pictures are no better than chance"
)
ITEMS = "items.parquet"  # of a benchmark
SCORES = ("understanding", "generation", "gap")
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
LEARNING = ("reader", "encoder")
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
        "benchmark_results": [asdict(one.ref) for one in context.inputs["benchmarks"]],
        "judge": _judged(evaluation).name,
        "baseline": None,
        "baseline_results": [one.ref.uri for one in context.inputs["baseline_benchmarks"]],
    }
    if context.inputs["baseline"]:
        baseline = context.input("baseline")
        config = context.config
        compared, skipped = _benchmark_changes(context)
        tables = _records(evaluation), _records(baseline)
        decision = judge(*tables, config.gate, config.evaluation, _judged(evaluation), compared)
        document |= asdict(decision) | {"baseline": asdict(baseline.ref)}
        document["reason"] += skipped
    elif not _reads(evaluation):
        document |= {"promote": False, "reason": UNREADABLE}
    with context.draft.write(RESULT) as path:
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return {"promote": document["promote"], "reason": document["reason"]}


def _benchmark_changes(context: StageContext) -> tuple[list[BenchmarkChange], str]:
    """Changes at the benchmarks that both were scored by, and a remark about the others."""
    after, before = (
        {_name(one): one for one in context.inputs[name]}
        for name in ("benchmarks", "baseline_benchmarks")
    )
    changes, skipped = [], []
    for name in dict.fromkeys((*after, *before)):
        if name not in after or name not in before or _differ(after[name], before[name]):
            skipped.append(name)
            continue
        new, old = (
            read_table(one.path(ITEMS), "benchmark_items") for one in (after[name], before[name])
        )
        changes.append(benchmark_change(name, new, old, context.config.evaluation))
    remark = "; not compared, since items or settings differ or only one was scored: "
    return changes, remark + ", ".join(skipped) if skipped else ""


def _differ(after: Artifact, before: Artifact) -> bool:
    """Whether two results are of other items, judges or sampling."""
    return bool(after.manifest["results"]["terms"] != before.manifest["results"]["terms"])


def _name(benchmark: Artifact) -> BenchmarkName:
    name: BenchmarkName = benchmark.manifest["results"]["name"]
    return name


def _judged(evaluation: Artifact) -> JudgedBy:
    results = evaluation.manifest["results"]
    return JudgedBy(results["judge"], results["independent"], results["why"])


def _reads(evaluation: Artifact) -> bool:
    """Whether U is above what guesses would get, beyond its interval."""
    found = _figures(evaluation)
    return float(found["understanding"]["low"]) > float(found["chance"]["value"])


REGISTER = Stage(
    "register",
    3,
    reads=("gate", "evaluation.bootstrap_samples", "evaluation.confidence"),
    inputs=("checkpoint", "evaluation", "baseline", "benchmarks", "baseline_benchmarks"),
    body=_body,
)


@dataclass(frozen=True)
class Scores:
    """What was found out about a checkpoint: its evaluation, and what benchmarks gave."""

    evaluation: ArtifactRef
    benchmarks: Sequence[ArtifactRef] = ()


def register(
    config: Config,
    store: Store,
    checkpoint: ArtifactRef,
    scores: Scores,
    baseline: Scores | None,
    *,
    run_id: str = "",
    registry: Registry | None = None,
) -> Registration:
    """Judge a checkpoint against the champion, and register it unless that is done already.

    `baseline` are the scores to compare with where there is no champion that was judged on the
    same records with the same settings; None for the base checkpoint itself. `run_id` is that of
    the MLflow run that made the checkpoint; a registry that is open already spares a connection.
    """
    registry = registry or open_registry(config)
    version = registry.find(_registration_key(config, checkpoint, scores))
    if version is None:
        opponent, note = _choose_opponent(registry, store, checkpoint, scores, baseline)
    else:
        # Judged before, maybe the champion itself by now: the decision on record stands.
        opponent, note = _opponent_on_record(store, version, baseline), NO_NOTE
    inputs: Inputs = {
        "checkpoint": checkpoint,
        "evaluation": scores.evaluation,
        "baseline": [] if opponent is None else [opponent.evaluation],
        "benchmarks": scores.benchmarks,
        "baseline_benchmarks": [] if opponent is None else opponent.benchmarks,
    }
    result = run_stage(REGISTER, config, store, inputs)
    document = json.loads(store.open(result.ref).path(RESULT).read_text(encoding="utf-8"))
    # A store may have moved since the decision: what is registered lies where it is now.
    document |= {
        "checkpoint": asdict(checkpoint),
        "evaluation": asdict(scores.evaluation),
        "benchmark_results": [asdict(one) for one in scores.benchmarks],
    }
    if version is None:
        document |= _noted(document, note)
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
    config: Config, registry: Registry, checkpoint: ArtifactRef, scores: Scores
) -> bool:
    """Whether there is nothing left to do for `register`."""
    return registry.find(_registration_key(config, checkpoint, scores)) is not None


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
    scores, baseline = (
        Scores(given[one][0], given[several]) if given[one] else None
        for one, several in (("evaluation", "benchmarks"), ("baseline", "baseline_benchmarks"))
    )
    assert scores is not None
    registry = open_registry(config, warn=warn)
    checkpoint = given["checkpoint"][0]
    done = register(config, store, checkpoint, scores, baseline, run_id=run_id, registry=registry)
    return StageResult(done.ref, done.cached, time.monotonic() - started)


def _registration_key(config: Config, checkpoint: ArtifactRef, scores: Scores) -> str:
    # With the URI, so that a store that has moved is registered at its new place.
    parts = [
        declared_config(REGISTER, config),
        checkpoint.uri,
        checkpoint.digest,
        scores.evaluation.digest,
        [benchmark.digest for benchmark in scores.benchmarks],
    ]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Note:
    """What has to be said of a comparison; `promote` is set where there is none to decide it."""

    text: str = ""
    promote: bool | None = None


NO_NOTE = _Note()


def _noted(document: Mapping[str, Any], note: _Note) -> dict[str, Any]:
    if note.promote is None:
        return {"reason": document["reason"] + note.text}
    # An own figure that bars a first version bars this one, too.
    promote = note.promote and document["promote"]
    return {"promote": promote, "reason": note.text if document["promote"] else document["reason"]}


def _choose_opponent(
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
        return (None if first else baseline), NO_NOTE
    if champion.tags.get("digest") == checkpoint.digest:
        # A version says nothing about itself.
        text = f"the champion already, version {champion.number}, judged anew"
        return None, _Note(text, promote=True)
    problem = ""
    try:
        own, other = store.open(scores.evaluation), Artifact(champion.tags["evaluation_uri"])
        if other.ref.digest != champion.tags["evaluation_digest"]:
            problem = "was made anew meanwhile"
        else:
            problem = _difference(own, other)
        if not problem:
            return Scores(other.ref, _benchmarks_on_record(champion)), NO_NOTE
    except (UserError, OSError, KeyError):
        problem = "is gone"
    since = f"since the evaluation of the champion, version {champion.number}, {problem}"
    if baseline is None:
        return None, _Note(f"not promoted: not compared with anything, {since}", promote=False)
    return baseline, _Note(f" (compared with the base evaluation of this run, {since})")


def _opponent_on_record(store: Store, version: Version, baseline: Scores | None) -> Scores | None:
    uri = version.tags["compared_with"]
    if not uri:
        return None
    try:
        benchmarks = [
            store.open(one).ref for one in json.loads(version.tags.get("compared_benchmarks", "[]"))
        ]
        return Scores(store.open(uri).ref, benchmarks)
    except (UserError, OSError):
        return baseline


def _benchmarks_on_record(version: Version) -> list[ArtifactRef]:
    """The results of a version's benchmarks, without those that are gone or made anew."""
    found = []
    for uri, digest in json.loads(version.tags.get("benchmarks", "{}")).items():
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
    now, then = (flatten(manifest["config"]) for manifest in (mine, theirs))
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
    return "" if comparable(_records(own), _records(other)) else "was made on other records"


def _digests(manifest: Mapping[str, Any], name: str) -> list[str]:
    return [ref["digest"] for ref in manifest["inputs"].get(name, [])]


def _records(evaluation: Artifact) -> pa.Table:
    return read_table(evaluation.path("records.parquet"), "record_metrics")


def _figures(evaluation: Artifact) -> dict[str, dict[str, Any]]:
    table = read_table(evaluation.path("metrics.parquet"), "metrics")
    return {row["name"]: row for row in table.to_pylist() if row["group"] == "all"}


def _scores(evaluation: Artifact) -> dict[str, float]:
    figures = _figures(evaluation)
    return {name: figures[name]["value"] for name in SCORES}


def _make_version(
    registry: Registry, config: Config, ref: ArtifactRef, document: Mapping[str, Any], run_id: str
) -> Version | None:
    checkpoint, evaluation = (
        ArtifactRef(**document[name]) for name in ("checkpoint", "evaluation")
    )
    shown = {name: f"{value:.4f}" for name, value in document["scores"].items()}
    results = [ArtifactRef(**ref) for ref in document["benchmark_results"]]
    baseline = document["baseline"]
    tags = {
        "promoted": json.dumps(document["promote"]),
        "reason": document["reason"],
        **shown,
        "store_uri": checkpoint.uri,
        "digest": checkpoint.digest,
        "sha256": document["sha256"],
        "evaluation_uri": evaluation.uri,
        "evaluation_digest": evaluation.digest,
        "benchmarks": json.dumps({one.uri: one.digest for one in results}),
        "judge": document["judge"],
        "compared_with": baseline["uri"] if baseline else "",
        "compared_benchmarks": json.dumps(document["baseline_results"]),
        "registration_uri": ref.uri,
    }
    description = (
        f"{document['reason']}\n\n"
        f"U {shown['understanding']}, G {shown['generation']}, gap {shown['gap']} on held-out "
        f"records, drawings judged by {document['judge']}. Weights stay at {checkpoint.uri}; "
        f"self-play seed {config.seed}."
    )
    key = _registration_key(config, checkpoint, Scores(evaluation, results))
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
