"""Publishing a judged checkpoint as a version of the registered model, with its aliases."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from core.artifact import ArtifactRef
from core.config import Config
from core.store import Store
from tracking.registry import Registry, Version

WEIGHTS = "model/model.safetensors"


@dataclass(frozen=True)
class Scores:
    """What was found out about a checkpoint: its evaluation, and what benchmarks gave."""

    evaluation: ArtifactRef
    benchmarks: Sequence[ArtifactRef] = ()


def find_published(
    registry: Registry, config: Config, checkpoint: ArtifactRef, scores: Scores
) -> Version | None:
    """The version that `publish` has made of this checkpoint, these scores and this gate."""
    version = registry.find(_key(config, checkpoint, scores))
    if version is not None:  # without aliases, if it was killed before it had set them
        registry.set_aliases(version, promote=version.tags["promoted"] == "true")
    return version


def publish(
    registry: Registry,
    config: Config,
    checkpoint: ArtifactRef,
    scores: Scores,
    opponent: Scores | None,
    gate: ArtifactRef,
    decision: Mapping[str, Any],
    run_id: str = "",
) -> Version | None:
    """Make a version of a checkpoint unless there is one; None where MLflow cannot be had.

    `gate` is the artifact of the decision. `run_id` is that of the MLflow run that made the
    checkpoint. The decision on record stands: a version that is there keeps it.
    """
    version = find_published(registry, config, checkpoint, scores)
    artifact = Store(config.store).open(checkpoint)
    # A checkpoint whose weights were deleted has nothing to be served.
    if version is not None or not registry.open or artifact.freed:
        return version
    shown = {name: f"{value:.4f}" for name, value in decision["scores"].items()}
    tags = {
        "promoted": json.dumps(decision["promote"]),
        "reason": decision["reason"],
        **shown,
        "store_uri": checkpoint.uri,
        "digest": checkpoint.digest,
        "sha256": artifact.manifest["files"][WEIGHTS]["sha256"],
        "evaluation_uri": scores.evaluation.uri,
        "evaluation_digest": scores.evaluation.digest,
        "benchmarks": json.dumps({one.uri: one.digest for one in scores.benchmarks}),
        "judge": decision["judge"],
        "compared_with": opponent.evaluation.uri if opponent else "",
        "compared_benchmarks": json.dumps(
            [one.uri for one in opponent.benchmarks] if opponent else []
        ),
        "registration_uri": gate.uri,
    }
    description = (
        f"{decision['reason']}\n\n"
        f"U {shown['understanding']}, G {shown['generation']}, gap {shown['gap']} on held-out "
        f"records, drawings judged by {decision['judge']}. Weights stay at {checkpoint.uri}; "
        f"self-play seed {config.seed}."
    )
    key = _key(config, checkpoint, scores)
    version = registry.register(key, tags, description, _served(config, checkpoint), run_id)
    if version is not None:
        registry.set_aliases(version, promote=decision["promote"])
    return version


def _key(config: Config, checkpoint: ArtifactRef, scores: Scores) -> str:
    judged_by = {
        "gate": config.gate.model_dump(mode="json"),
        "evaluation.bootstrap_samples": config.evaluation.bootstrap_samples,
        "evaluation.confidence": config.evaluation.confidence,
    }
    # With the URI, so that a store that has moved is registered at its new place.
    parts = [
        judged_by,
        checkpoint.uri,
        checkpoint.digest,
        scores.evaluation.digest,
        [benchmark.digest for benchmark in scores.benchmarks],
    ]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


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
            "image": images.model_dump(exclude={"num_samples"}),
        },
    }
