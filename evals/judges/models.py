"""A checkpoint as a judge: the frozen base, which is a relative of what it judges, or another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.questions import QuestionRow
from evals.judges.base import Judge
from evals.vqa import Answered, ask
from models.protocol import UnifiedModel
from models.weights import Weights

ALIKE = 0.9
"""Cosine of two matrices above which one was made from the other: training moves weights by parts
of a percent, averages and other precisions keep their direction, other training has none in
common."""
SAMPLE = 1 << 16  # numbers of a matrix that are compared
HALF = 0.5


class ModelJudge(Judge):
    """A frozen checkpoint. It sees pixels, as any judge from outside would, not the tokens."""

    def __init__(self, model: UnifiedModel) -> None:
        self._model = model

    def answers(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[QuestionRow]]
    ) -> list[list[Answered]]:
        return ask(self._model, self._model.see(images), questions)


def shared_weights(one: Path, other: Path) -> float:
    """Share of the weights of `one` that `other` has too, under the same names and nearly equal.

    Near 1 for the same model, for one that was trained from the other, for an average of both and
    in another precision; near 0 for models that were trained apart.
    """
    mine, theirs = Weights(one), Weights(other)
    common = {name for name, shape in mine.shapes.items() if theirs.shapes.get(name) == shape}
    kept = {name: _sample(tensor) for name, tensor in mine if name in common and tensor.ndim > 1}
    total = sum(shape.numel() for shape in mine.shapes.values() if len(shape) > 1)
    same = 0
    for name, tensor in theirs:
        if name in kept and _cosine(kept[name], _sample(tensor)) > ALIKE:
            same += tensor.numel()
    return same / max(total, 1)


def _sample(tensor: object) -> np.ndarray:
    flat = tensor.flatten()[:SAMPLE]  # type: ignore[attr-defined]
    return np.asarray(flat.float().cpu().numpy(), np.float64)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm > 0 else 0.0
