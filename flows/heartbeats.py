"""Automations of the Prefect server: runs whose machine is gone are shown as crashed.

Long training is safe: heartbeats come from a thread of its own, whatever the step takes, and not
from progress. Stages inside of a self-play have none and are not watched (flows/stale_runs.py).
"""

from __future__ import annotations

from datetime import timedelta

from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

LOST_RUNS, LOST_STAGES = "hermesflow: lost runs", "hermesflow: lost stages"
STAGE_TAG = "stage"  # of runs on work pools, which their parent does again
HEARTBEAT = "prefect.flow-run.heartbeat"
# Twenty heartbeats: a server that is restarted or a network that is down for some minutes does not
# end a self-play, nor a stage that nobody would do again.
PATIENT_SECONDS = 600
ENDS = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "Crashed")}


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
