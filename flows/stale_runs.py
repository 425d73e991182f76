"""Runs of self-plays on this machine that were killed: Prefect still shows them as running.

Whoever kills a process gives it no time to say so, and stages inside of it send no heartbeat. So
each self-play leaves the identity of its process with its run, and the next one looks.
"""

from __future__ import annotations

import os
import socket
from uuid import UUID

import psutil
from prefect import State, get_run_logger
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
from prefect.runtime import flow_run
from prefect.states import Crashed

from flows.pages import try_to

HOST, PID, STARTED = "hermesflow.host", "hermesflow.pid", "hermesflow.started"
UNDER_WAY = FlowRunFilterState(
    type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])
)


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
