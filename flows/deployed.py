"""The flows of the stages that have deployments of their own, which name these variables."""

from typing import get_args

from core.config import DeployedStage
from flows.stages import stage_flow
from tasks.evaluate import EVALUATE
from tasks.pair import PAIR
from tasks.reference import REFERENCE
from tasks.register import REGISTER
from tasks.sample import CAPTIONS, IMAGES
from tasks.score import SCORE_CAPTIONS, SCORE_IMAGES
from tasks.train import TRAIN

sample_captions = stage_flow(CAPTIONS)
sample_images = stage_flow(IMAGES)
score_captions = stage_flow(SCORE_CAPTIONS)
score_images = stage_flow(SCORE_IMAGES)
pair = stage_flow(PAIR)
reference = stage_flow(REFERENCE)
train = stage_flow(TRAIN)
evaluate = stage_flow(EVALUATE)
register = stage_flow(REGISTER)


STAGES: tuple[DeployedStage, ...] = get_args(DeployedStage)


def entrypoint(stage: str) -> str:
    """Where a deployment finds the flow of a stage, from the project's folder."""
    return f"flows/deployed.py:{stage.replace('-', '_')}"
