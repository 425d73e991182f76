"""An automation of the Prefect server: runs whose machine is gone are shown as crashed.

Long training is safe: heartbeats come from a thread of its own, whatever the step takes, and not
from progress. Stages inside of a self-play have none and are not watched (flows/leftovers.py).
"""

from __future__ import annotations

from datetime import timedelta

from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

NAME = "hermesflow: lost runs"
HEARTBEAT = "prefect.flow-run.heartbeat"
# Twenty heartbeats: a server that is restarted or a network that is down for some minutes ends
# nothing. A self-play on a work pool gives its runs up by itself, after compute.lost_seconds.
SILENT = timedelta(minutes=10)
ENDS = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "Crashed")}


def watch_heartbeats() -> None:
    """Install the automation, or bring the one that is there up to date."""
    wanted = _automation()
    try:
        there = Automation.read(name=NAME)
    except (ValueError, ObjectNotFound):
        wanted.create()
        return
    assert isinstance(there, Automation)
    wanted.id = there.id
    wanted.update()


def _automation() -> Automation:
    return Automation(
        name=NAME,
        description="A run that has sent heartbeats and sends none for long is shown as crashed.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=ResourceSpecification.model_validate(
                {"prefect.resource.id": "prefect.flow-run.*"}
            ),
            for_each={"prefect.resource.id"},
            after={HEARTBEAT},
            expect={HEARTBEAT, *ENDS},
            threshold=1,
            within=SILENT,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"no heartbeat for {SILENT.total_seconds() / 60:g} minutes",
            )
        ],
    )
