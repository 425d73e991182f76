"""Every stage as a Prefect flow of its own, named like the stage.

Only the resolved config and artifact references pass between flows, never data, so that a stage may
run in this process or anywhere that reaches the store.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from prefect import flow, get_run_logger, tags
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from core.artifact import ArtifactRef
from core.config import Config
from core.progress import observed_by
from core.stage import Inputs, Stage, StageResult, run_stage
from core.store import Store

RefDocument = dict[str, str]


def run_in_flow(stage: Stage, config: Config, inputs: Inputs, iteration: int) -> StageResult:
    """Run a stage as a child flow run of the current one."""

    @flow(
        name=stage.name,
        flow_run_name=f"{stage.name} {label(iteration)}",
        validate_parameters=False,
        log_prints=False,
    )
    def run(
        config: dict[str, Any], inputs: dict[str, list[RefDocument]], iteration: int
    ) -> dict[str, Any]:
        return asdict(_run(stage, Config.model_validate(config), _refs(inputs)))

    with tags(label(iteration).replace(" ", "-"), stage.name):
        done = run(config.model_dump(mode="json"), _documents(inputs), iteration)
    how = "cached" if done["cached"] else f"{done['seconds']:.1f} s"
    announce(iteration, stage.name, how)
    return StageResult(ArtifactRef(**done["ref"]), done["cached"], done["seconds"])


def label(iteration: int) -> str:
    """How an iteration is called everywhere; 0 is the base checkpoint."""
    return f"iteration {iteration}" if iteration else "base"


def announce(iteration: int, step: str, text: str) -> None:
    """One line in the terminal for a step that is done."""
    print(f"{label(iteration):12} {step:16} {text}", file=sys.stderr, flush=True)


def _run(stage: Stage, config: Config, inputs: Inputs) -> StageResult:
    with observed_by(ProgressMirror(stage.name)):
        result = run_stage(stage, config, Store(config.store), inputs)
    how = "was there already" if result.cached else f"took {result.seconds:.1f} s"
    get_run_logger().info("%s %s: %s", stage.name, how, result.ref.uri)
    return result


class ProgressMirror:
    """Shows a terminal's progress bars as progress artifacts of the current flow run."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._artifacts: dict[str, uuid.UUID] = {}

    def __call__(self, description: str, done: int, total: int) -> None:
        percent = 100.0 * done / max(total, 1)
        if description in self._artifacts:
            update_progress_artifact(self._artifacts[description], percent)
        else:
            created = create_progress_artifact(percent, description=f"{self._stage}: {description}")
            self._artifacts[description] = created  # type: ignore[assignment]


def _documents(inputs: Inputs) -> dict[str, list[RefDocument]]:
    return {
        name: [asdict(ref) for ref in ([given] if isinstance(given, ArtifactRef) else given)]
        for name, given in inputs.items()
    }


def _refs(inputs: Mapping[str, Sequence[RefDocument]]) -> dict[str, list[ArtifactRef]]:
    return {name: [ArtifactRef(**ref) for ref in refs] for name, refs in inputs.items()}
