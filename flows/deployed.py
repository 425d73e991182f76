"""The flows of the stages that have deployments of their own, which name attributes of this module.

A flow is made when it is asked for: a run imports what its stage needs and no more, which is most
of the time that a short stage takes to start.
"""

from typing import Any

from prefect import Flow

from flows.stages import stage_flow
from tasks.catalog import DEPLOYED, load_stage


def __getattr__(name: str) -> Flow[..., Any]:
    stage = name.replace("_", "-")
    if stage not in DEPLOYED:
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    return stage_flow(load_stage(stage))


def entrypoint(stage: str) -> str:
    """Where a deployment finds the flow of a stage, from the project's folder."""
    return f"flows/deployed.py:{stage.replace('-', '_')}"
