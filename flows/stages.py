"""Every stage as a Prefect flow of its own, named like the stage.

Only the resolved config and artifact references pass between flows, never data, so that a stage may
run in this process or anywhere that reaches the store.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prefect import Flow, State, flow, get_run_logger, tags
from prefect.settings import PREFECT_API_URL
from prefect.states import Failed

from core.artifact import ArtifactRef
from core.config import Config
from core.errors import UserError
from core.progress import observed_by
from core.secrets import masked
from core.stage import WHOLE, Inputs, Share, Stage, StageResult
from core.store import Store
from flows.executors.local import run_on_machine
from flows.pages import ProgressPage
from flows.servers import answers
from tasks.benchmark import BENCHMARK
from tracking.live import shown_live

RefDocument = dict[str, str]
SHOWN_DIGITS = 8  # of a digest
DOT = " · "
PATIENCE_SECONDS = 600.0  # with a Prefect server that does not answer
POLL_SECONDS = 2.0


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


def stage_flow(stage: Stage) -> Flow[..., Any]:
    """The flow of a stage: given a config, references to inputs, a step and a share of the work.

    Returns nothing that another process would need: the store has the artifact.
    """

    @flow(name=stage.name, validate_parameters=False, log_prints=False)
    def run(
        config: dict[str, Any],
        inputs: dict[str, list[RefDocument]],
        step: dict[str, Any],
        share: Sequence[int] = (WHOLE.index, WHOLE.count),
    ) -> dict[str, Any] | State[Any] | None:
        try:
            resolved = Config.model_validate(config)
            # Says within seconds what an attempt to read would say after minutes.
            Store(resolved.store).check()
            done = _run(stage, resolved, _refs(inputs), step, Share(*share))
            return None if done is None else asdict(done)
        except UserError as error:
            return refused(error)

    return run


def parameters(
    config: Config, inputs: Inputs, step: Step, share: Share = WHOLE
) -> dict[str, object]:
    """What the flow of a stage is called with, as JSON documents."""
    return {
        "config": config.model_dump(mode="json"),
        "inputs": _documents(inputs),
        "step": asdict(step),
        "share": [share.index, share.count],
    }


def run_in_flow(stage: Stage, config: Config, inputs: Inputs, step: Step) -> StageResult:
    """Run a stage in this process, as a child flow run of the current one."""
    name = run_name(stage, config, step)
    run = stage_flow(stage).with_options(flow_run_name=lambda: name)
    await_server()
    with tags(*run_tags(stage, config, step)):
        try:
            state: Any = run(**parameters(config, inputs, step), return_state=True)
            done = outcome(state)
        except UserError as error:
            raise in_stage(stage, step, error) from None
    result = StageResult(ArtifactRef(**done["ref"]), done["cached"], done["seconds"])
    report_end(stage, step, result)
    return result


def await_server() -> None:
    """Wait for a Prefect server that is being restarted; UserError if that takes long.

    Prefect repeats what fails on a connection that it had, but each stage has a new one.
    """
    url = PREFECT_API_URL.value()
    if not url or answers(f"{url}/health"):
        return
    get_run_logger().warning("the Prefect server at %s does not answer; waiting for it", url)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not answers(f"{url}/health"):
        if time.monotonic() > deadline:
            raise UserError(
                f"the Prefect server at {url} has not answered for {PATIENCE_SECONDS:.0f} s; start "
                "it again and run the same command to continue"
            )
        time.sleep(POLL_SECONDS)


def in_stage(stage: Stage, step: Step, problem: object) -> UserError:
    """An error with the place where it happened."""
    return UserError(f"{step.label}, stage {stage.name}: {problem}")


def report_end(stage: Stage, step: Step, result: StageResult) -> None:
    """Say in terminal and log what a stage took."""
    how = "cached" if result.cached else f"{result.seconds:.1f} s"
    announce(step.label, stage.name, how)
    get_run_logger().info("%s, %s: %s", step.label, stage.name, how)


def run_name(stage: Stage, config: Config, step: Step) -> str:
    """`sample-images · iteration 2 · checkpoint 1a2b3c4d`; `pool · shapes` before the first.

    Of a benchmark the name comes second.
    """
    if step.checkpoint is None:
        return DOT.join((stage.name, config.data.title))
    digest = step.checkpoint.digest[:SHOWN_DIGITS]
    what = [stage.name, *([config.benchmarks[0].name] if stage is BENCHMARK else [])]
    return DOT.join((*what, step.label, f"checkpoint {digest}"))


def run_tags(stage: Stage, config: Config, step: Step) -> list[str]:
    """What runs of stages are filtered by: iteration, stage, model and pool."""
    return [step.label.replace(" ", "-"), stage.name, config.model.family, config.data.title]


def refused(error: UserError) -> State[Any]:
    """The state of a run that ends with a message to its user, and not with a traceback."""
    message = masked(str(error))
    get_run_logger().error("%s", message)
    return Failed(message=message)


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


def _run(
    stage: Stage, config: Config, inputs: Inputs, step: Mapping[str, Any], share: Share
) -> StageResult | None:
    logger = get_run_logger()
    if step["url"]:
        logger.info("MLflow run: %s", step["url"])
    page = ProgressPage(stage.name, step["label"], share)
    # MLflow's compare page begins with the first metric that all runs have, which must not be the
    # load of the machine: so that is not measured for the checkpoint that a run starts from.
    iterates = step["iteration"] > 0
    with observed_by(page), shown_live(config.tracking, step["run_id"], machine=iterates):
        result = do_stage(stage, config, inputs, step["run_id"], share)
    if result is None:
        logger.info("%s: share %d of %d is done", stage.name, share.index + 1, share.count)
        return None
    how = "was there already" if result.cached else f"took {result.seconds:.1f} s"
    logger.info("%s %s: %s", stage.name, how, result.ref.uri)
    return result


def do_stage(
    stage: Stage, config: Config, inputs: Inputs, run_id: str, share: Share = WHOLE
) -> StageResult | None:
    """Run a stage on this machine."""
    return run_on_machine(stage, config, Store(config.store), inputs, share)


def _documents(inputs: Inputs) -> dict[str, list[RefDocument]]:
    return {
        name: [asdict(ref) for ref in ([given] if isinstance(given, ArtifactRef) else given)]
        for name, given in inputs.items()
    }


def _refs(inputs: Mapping[str, Sequence[RefDocument]]) -> dict[str, list[ArtifactRef]]:
    return {name: [ArtifactRef(**ref) for ref in refs] for name, refs in inputs.items()}
