"""Runs that have ended without a word: Prefect would show them as running for ever.

Runs whose machine is gone are crashed by automations of the Prefect server, as their heartbeats
end. Long training is safe: these come from a thread of its own, whatever the step takes, and not
from progress. Stages inside of a self-play have none. So each self-play leaves the identity of its
process with its run, and the next one on this machine looks whether that was killed.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from uuid import UUID

import psutil
from prefect import State, get_run_logger
from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Crashed

from flows.pages import try_to

LOST_RUNS, LOST_STAGES = "hermesflow: lost runs", "hermesflow: lost stages"
STAGE_TAG = "stage"  # of runs on work pools, which their parent does again
HEARTBEAT = "prefect.flow-run.heartbeat"
# Twenty heartbeats: a server that is restarted or a network that is down for some minutes does not
# end a self-play, nor a stage that nobody would do again.
PATIENT_SECONDS = 600
ENDS = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "Crashed")}
HOST, PID, STARTED = "hermesflow.host", "hermesflow.pid", "hermesflow.started"
UNDER_WAY = FlowRunFilterState(
    type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])
)


def watch_heartbeats(
    name: str = LOST_RUNS, seconds: int = PATIENT_SECONDS, tag: str | None = None
) -> None:
    """Have the server crash runs (of a tag) that have sent heartbeats and send none for so long."""
    everything = {"prefect.resource.id": "prefect.flow-run.*"}
    tagged = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{tag}"}
    wanted = Automation(
        name=name,
        description="A run that has sent heartbeats and sends none for long is shown as crashed.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=ResourceSpecification.model_validate(everything),
            match_related=ResourceSpecification.model_validate(tagged if tag else {}),
            for_each={"prefect.resource.id"},
            after={HEARTBEAT},
            expect={HEARTBEAT, *ENDS},
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[
            ChangeFlowRunState(state=StateType.CRASHED, message=f"no sign of life for {seconds} s")
        ],
    )
    try:
        there = Automation.read(name=name)
    except (ValueError, ObjectNotFound):
        wanted.create()
        return
    assert isinstance(there, Automation)
    wanted.id = there.id
    wanted.update()


def reap_stale_runs(flow: str) -> None:
    """Show runs of `flow` on this machine whose process is gone as crashed; sign this one."""

    def reap() -> None:
        of_flow = FlowFilter(name=FlowFilterName(any_=[flow]))
        with get_client(sync_client=True) as client:
            for run in client.read_flow_runs(
                flow_filter=of_flow, flow_run_filter=FlowRunFilter(state=UNDER_WAY)
            ):
                if _is_gone(run):
                    _crash(client, run)
            # As text, since a float may lose its last digits on the way.
            started = f"{psutil.Process().create_time():.2f}"
            client.update_flow_run_labels(
                UUID(flow_run.id), {HOST: socket.gethostname(), PID: os.getpid(), STARTED: started}
            )

    try_to(reap)


def _is_gone(run: FlowRun) -> bool:
    """Whether a run has signed on this machine, and its process does not run any more."""
    if run.labels.get(HOST) != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(str(run.labels[PID])))
        same = f"{process.create_time():.2f}" == run.labels[STARTED]
        return not same or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _crash(client: SyncPrefectClient, run: FlowRun) -> None:
    of_run = FlowRunFilterParentFlowRunId(any_=[run.id])
    children = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(parent_flow_run_id=of_run, state=UNDER_WAY)
    )
    # Those on a work pool have processes of their own, and a later self-play takes them over.
    inside = [child for child in children if child.deployment_id is None]
    for one in (*inside, run):
        state: State[object] = Crashed(message="the process of the self-play is gone")
        client.set_flow_run_state(one.id, state, force=True)
    get_run_logger().info("run %s was killed; it is shown as crashed now", run.name)
