"""Every stage as a Prefect flow of its own, named like the stage.

Only the resolved config and artifact references pass between flows, never data, so that a stage may
run in this process or anywhere that reaches the store.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import Any

from prefect import Flow, State, flow, get_run_logger, tags
from prefect.settings import PREFECT_API_URL
from prefect.states import Failed

from core.artifact import ArtifactRef
from core.errors import UserError
from core.progress import observed_by
from core.secrets import masked
from core.stage import Stage, StageResult
from flows.executors.base import Job, job_from
from flows.executors.local import LocalProcesses
from flows.pages import ProgressPage
from flows.servers import answers
from tracking.live import shown_live

SHOWN_DIGITS = 8  # of a digest
DOT = " · "
PATIENCE_SECONDS = 600.0  # with a Prefect server that does not answer
POLL_SECONDS = 2.0


def stage_flow(stage: Stage, job: Job | None = None) -> Flow[..., Any]:
    """The flow of a stage, whose parameters are `Job.documents`.

    With the `job` of a caller in this process the parameters are there for people alone. Returns
    nothing that another process would need: the store has the artifact.
    """

    @flow(name=stage.name, validate_parameters=False, log_prints=False)
    def run(
        config: dict[str, Any],
        inputs: dict[str, list[dict[str, str]]],
        step: dict[str, Any],
        shard: tuple[int, int] = (0, 1),
    ) -> dict[str, Any] | State[Any] | None:
        try:
            if job is not None:
                done = _run(job)
            else:
                names = {"config": config, "inputs": inputs, "step": step, "shard": shard}
                given = job_from(stage, names)
                # Says within seconds what an attempt to read would say after minutes.
                given.store.check()
                done = _run(given)
            return None if done is None else asdict(done)
        except UserError as error:
            return refused(error)

    return run


def _run(job: Job) -> StageResult | None:
    """Run a job in processes of this machine, and show it where people look."""
    logger, stage, step = get_run_logger(), job.stage, job.step
    if step.url:
        logger.info("MLflow run: %s", step.url)
    page = ProgressPage(stage.name, step.label, job.shard)
    # MLflow's compare page begins with the first metric that all runs have, which must not be the
    # load of the machine: so that is not measured for the checkpoint that a run starts from.
    iterates = step.iteration > 0
    with observed_by(page), shown_live(job.config.tracking, step.run_id, machine=iterates):
        result = LocalProcesses().run(job)
    if result is None:
        logger.info("%s: shard %d of %d is done", stage.name, job.shard.index + 1, job.shard.count)
        return None
    how = "was there already" if result.cached else f"took {result.seconds:.1f} s"
    logger.info("%s %s: %s", stage.name, how, result.ref.uri)
    return result


class ChildFlows:
    """Runs jobs on this machine, each as a child flow run of the current one."""

    def run(self, job: Job) -> StageResult | None:
        """As `Executor.run`."""
        name = run_name(job)
        child = stage_flow(job.stage, job).with_options(flow_run_name=lambda: name)
        await_server()
        with tags(*run_tags(job)):
            try:
                state: Any = child(**job.documents(), return_state=True)
                done = outcome(state)
            except UserError as error:
                raise in_stage(job, error) from None
        result = StageResult(ArtifactRef(**done["ref"]), done["cached"], done["seconds"])
        report_end(job, result)
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


def in_stage(job: Job, problem: object) -> UserError:
    """An error with the place where it happened."""
    return UserError(f"{job.step.label}, stage {job.stage.name}: {problem}")


def report_end(job: Job, result: StageResult) -> None:
    """Say in terminal and log what a stage took."""
    how = "cached" if result.cached else f"{result.seconds:.1f} s"
    announce(job.step.label, job.stage.name, how)
    get_run_logger().info("%s, %s: %s", job.step.label, job.stage.name, how)


def run_name(job: Job) -> str:
    """`sample-images · iteration 2 · checkpoint 1a2b3c4d`; `pool · shapes` before the first.

    The detail of a step comes second.
    """
    stage, step = job.stage.name, job.step
    if step.checkpoint is None:
        return DOT.join((stage, job.config.data.title))
    what = [stage, step.detail] if step.detail else [stage]
    return DOT.join((*what, step.label, f"checkpoint {step.checkpoint.digest[:SHOWN_DIGITS]}"))


def run_tags(job: Job) -> list[str]:
    """What runs of stages are filtered by: iteration, stage, model and pool."""
    config, label = job.config, job.step.label
    return [label.replace(" ", "-"), job.stage.name, config.model.family, config.data.title]


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
