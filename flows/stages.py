"""Every stage as a Prefect flow of its own, named like the stage.

Only the resolved config and artifact references pass between flows, never data, so that a stage may
run in this process or anywhere that reaches the store.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prefect import State, flow, get_run_logger, tags
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Failed

from core.artifact import ArtifactRef
from core.config import Config
from core.errors import UserError
from core.progress import observed_by
from core.stage import Inputs, Stage, StageResult, run_stage
from core.store import Store
from flows.pages import ProgressPage
from tasks._tracking.live import shown_live

RefDocument = dict[str, str]
SHOWN_DIGITS = 8  # of a digest
DOT = " · "


@dataclass(frozen=True)
class Step:
    """Where in a self-play a stage runs: what people see, and the MLflow run that it belongs to.

    `checkpoint` is the one that samples, is trained or judged; none for what comes before all.
    """

    iteration: int
    label: str
    checkpoint: ArtifactRef | None = None
    run_id: str = ""
    url: str = ""


def run_in_flow(stage: Stage, config: Config, inputs: Inputs, step: Step) -> StageResult:
    """Run a stage as a child flow run of the current one."""
    name = run_name(stage, config, step)

    @flow(name=stage.name, flow_run_name=lambda: name, validate_parameters=False, log_prints=False)
    def run(
        config: dict[str, Any], inputs: dict[str, list[RefDocument]], step: dict[str, Any]
    ) -> dict[str, Any] | State[Any]:
        try:
            return asdict(_run(stage, Config.model_validate(config), _refs(inputs), step))
        except UserError as error:
            return refused(error)

    # The parent's heartbeat stands for both, as they share a process. Ending one takes a second,
    # which is most of what a repeated run would take.
    no_heartbeat = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
    with no_heartbeat, tags(*run_tags(stage, config, step)):
        given = config.model_dump(mode="json"), _documents(inputs), asdict(step)
        try:
            done = outcome(run(*given, return_state=True))
        except UserError as error:
            raise UserError(f"{step.label}, stage {stage.name}: {error}") from None
    how = "cached" if done["cached"] else f"{done['seconds']:.1f} s"
    announce(step.label, stage.name, how)
    get_run_logger().info("%s, %s: %s", step.label, stage.name, how)
    return StageResult(ArtifactRef(**done["ref"]), done["cached"], done["seconds"])


def run_name(stage: Stage, config: Config, step: Step) -> str:
    """`sample-images · iteration 2 · checkpoint 1a2b3c4d`; `pool · shapes` before the first."""
    if step.checkpoint is None:
        return DOT.join((stage.name, config.data.title))
    digest = step.checkpoint.digest[:SHOWN_DIGITS]
    return DOT.join((stage.name, step.label, f"checkpoint {digest}"))


def run_tags(stage: Stage, config: Config, step: Step) -> list[str]:
    """What runs of stages are filtered by: iteration, stage, model and pool."""
    return [step.label.replace(" ", "-"), stage.name, config.model.family, config.data.title]


def refused(error: UserError) -> State[Any]:
    """The state of a run that ends with a message to its user, and not with a traceback."""
    get_run_logger().error("%s", error)
    return Failed(message=str(error))


def outcome(state: State[Any]) -> Any:
    """What a flow returned; UserError after `refused`, and the exception of any other failure."""
    result = state.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        raise result
    if not state.is_completed():
        raise UserError(state.message or f"the run ended as {state.name}")
    return result


def label(iteration: int) -> str:
    """How an iteration is called everywhere; 0 is the base checkpoint."""
    return f"iteration {iteration}" if iteration else "base"


def announce(label: str, step: str, text: str) -> None:
    """One line in the terminal for a step that is done."""
    print(f"{label:12} {step:16} {text}", file=sys.stderr, flush=True)


def _run(stage: Stage, config: Config, inputs: Inputs, step: Mapping[str, Any]) -> StageResult:
    logger = get_run_logger()
    if step["url"]:
        logger.info("MLflow run: %s", step["url"])
    page = ProgressPage(stage.name, step["label"])
    # MLflow's compare page begins with the first metric that all runs have, which must not be the
    # load of the machine: so that is not measured for the checkpoint that a run starts from.
    iterates = step["iteration"] > 0
    with observed_by(page), shown_live(config.tracking, step["run_id"], machine=iterates):
        result = run_stage(stage, config, Store(config.store), inputs)
    how = "was there already" if result.cached else f"took {result.seconds:.1f} s"
    logger.info("%s %s: %s", stage.name, how, result.ref.uri)
    return result


def _documents(inputs: Inputs) -> dict[str, list[RefDocument]]:
    return {
        name: [asdict(ref) for ref in ([given] if isinstance(given, ArtifactRef) else given)]
        for name, given in inputs.items()
    }


def _refs(inputs: Mapping[str, Sequence[RefDocument]]) -> dict[str, list[ArtifactRef]]:
    return {name: [ArtifactRef(**ref) for ref in refs] for name, refs in inputs.items()}
