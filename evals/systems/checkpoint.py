"""A checkpoint of one of our families as a system under test. Shapes as in models/protocol.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from PIL import Image

from core.config import Config
from data.questions import QuestionRow
from evals.checkpoints import Checkpoint, open_model
from evals.systems.base import Drawing, Picture, Prompt, Question, System
from evals.vqa import Answered, ask
from models.protocol import (
    ImageSampling,
    TextSampling,
    UnifiedModel,
    image_sampling,
    sampling_settings,
)
from services.replies import NoAnswer


class CheckpointSystem(System):
    """A unified model, which is loaded when it is first asked."""

    reads = draws = True

    def __init__(
        self,
        title: str,
        recipe: Mapping[str, object],
        load: Callable[[], UnifiedModel],
        sampling: ImageSampling,
    ) -> None:
        super().__init__(title, {**recipe, "sampling": sampling_settings(sampling)})
        self._load, self._sampling = load, sampling

    @classmethod
    def of(cls, config: Config, checkpoint: Checkpoint) -> CheckpointSystem:
        """The checkpoint, run as a config says."""
        recipe = {
            "kind": "checkpoint",
            "checkpoint": checkpoint.digest,
            "family": config.model.family,
            "precision": config.model.precision,
        }
        sampling = image_sampling(config.sampling.images)
        return cls(checkpoint.name, recipe, lambda: open_model(config, checkpoint.folder), sampling)

    @cached_property
    def _model(self) -> UnifiedModel:
        return self._load()

    def reply(
        self, pictures: Sequence[Image.Image], asked: Sequence[Sequence[Question]]
    ) -> list[list[str | NoAnswer]]:
        model = self._model
        questions = [[(one.text, one.choices) for one in same] for same in asked]
        return [list(said) for said in model.reply(model.see(pictures), questions)]

    def caption(self, pictures: Sequence[Image.Image], max_new_tokens: int) -> list[str | NoAnswer]:
        greedy, model = TextSampling(1.0, 1, max_new_tokens), self._model
        told = model.caption(model.see(pictures), [greedy], [0] * len(pictures))
        return [captions[0] for captions in told]

    def choose(
        self, pictures: Sequence[Image.Image], asked: Sequence[Sequence[QuestionRow]]
    ) -> list[list[Answered]]:
        return ask(self._model, self._model.see(pictures), asked)

    def draw(self, prompts: Sequence[Prompt], num_pictures: int) -> list[list[Drawing]]:
        model, texts = self._model, [prompt.text for prompt in prompts]
        seeds = [prompt.seed for prompt in prompts]
        drawn_BM = model.generate(texts, num_pictures, self._sampling, seeds)
        images = iter(model.decode(drawn_BM.reshape(-1, *model.drawn_shape)))
        return [[Picture(next(images), drawn) for drawn in drawn_M] for drawn_M in drawn_BM]

    def cut(self, prompts: Sequence[str]) -> list[bool]:
        return [use.cut for use in self._model.text_uses(prompts, "prompt")]
