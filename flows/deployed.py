"""The flows of the stages that have deployments of their own, which name attributes of this module.

A flow is made when it is asked for: a run imports what its stage needs and no more, which is most
of the time that a short stage takes to start.
"""

from importlib import import_module
from typing import Any, get_args

from prefect import Flow

from core.config import DeployedStage
from flows.stages import stage_flow

STAGES: tuple[DeployedStage, ...] = get_args(DeployedStage)
PLACES = {
    "fit": "tasks.fit:STAGE",
    "judge": "tasks.judge:STAGE",
    "sample-captions": "tasks.sample:CAPTIONS",
    "sample-images": "tasks.sample:IMAGES",
    "score-captions": "tasks.score:SCORE_CAPTIONS",
    "score-images": "tasks.score:SCORE_IMAGES",
    "pair": "tasks.pair:PAIR",
    "reference": "tasks.reference:REFERENCE",
    "train": "tasks.train:TRAIN",
    "evaluate": "tasks.evaluate:EVALUATE",
    "benchmark": "tasks.benchmark:BENCHMARK",
    "gate": "tasks.gate:GATE",
}


def __getattr__(name: str) -> Flow[..., Any]:
    stage = name.replace("_", "-")
    if stage not in PLACES:
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    module, _, constant = PLACES[stage].partition(":")
    return stage_flow(getattr(import_module(module), constant))


def entrypoint(stage: str) -> str:
    """Where a deployment finds the flow of a stage, from the project's folder."""
    return f"flows/deployed.py:{stage.replace('-', '_')}"
