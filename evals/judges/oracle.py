"""The pixel oracle of the shapes world as a judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from data.questions import QuestionRow
from data.shapes.oracle import answer_images, read
from evals.judges.base import Judge
from evals.vqa import Answered


class Oracle(Judge):
    """Reads the pixels of the shapes world; where no choice is true, that is its answer."""

    def answers(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[QuestionRow]]
    ) -> list[list[Answered]]:
        return [
            [
                Answered(question, said or "", float(said == question["answer"]))
                for question, said in zip(asked, read_answers, strict=True)
            ]
            for asked, read_answers in zip(
                questions, answer_images(_stack(images), questions), strict=True
            )
        ]

    def malformed(self, images: Sequence[Image.Image]) -> list[float]:
        return [float(scene.malformed > 0) for scene in read(_stack(images))]


def _stack(images: Sequence[Image.Image]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.stack([np.asarray(image) for image in images])
