"""The nearest real picture as a judge: a drawing shows what the real one that it resembles shows.

It learns nothing, so it cannot be misled as a network can; but it knows only what there are real
pictures of. Shapes: B pictures, R real ones, F numbers of a picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from core.artifact_writer import ArtifactWriter
from data.questions import QuestionRow
from evals.judges.base import Judge, Row, of_types
from evals.vqa import Answered

PICTURES, ANSWERS = "nearest/pictures.npy", "nearest/answers.json"
SIDE = 16
BLUR = 1.0  # pixels of the small copy, so that edges need not lie in the same place
AT_ONCE = 256


class Nearest(Judge):
    """Answers a question as it is answered about the nearest real picture.

    Where nobody was asked it there, or with an answer that is no choice here, no choice is right.
    """

    def __init__(
        self,
        pictures_RF: np.ndarray,
        answers: Sequence[Mapping[str, str]],
        types: Sequence[str] | None = None,
    ) -> None:
        """The real pictures and their answers by question; `types` as `Reader` has them."""
        self._pictures_RF, self._answers = pictures_RF.astype(np.float32), answers
        self._types = types

    def questions(self, records: Sequence[Row]) -> list[list[QuestionRow]]:
        return of_types(records, self._types)

    def answers(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[QuestionRow]]
    ) -> list[list[Answered]]:
        found: list[list[Answered]] = []
        for first in range(0, len(images), AT_ONCE):
            part = slice(first, first + AT_ONCE)
            for index, asked in zip(self._nearest(images[part]), questions[part], strict=True):
                known = self._answers[index]
                found.append([_answered(question, known) for question in asked])
        return found

    def _nearest(self, images: Sequence[Image.Image]) -> np.ndarray:
        pictures_BF = pictures_of(images).astype(np.float32)
        # |a-b|^2 less |a|^2, which is the same for all of a picture's neighbours.
        distance_BR = (self._pictures_RF**2).sum(1) - 2 * pictures_BF @ self._pictures_RF.T
        return np.asarray(distance_BR.argmin(1))


def pictures_of(images: Sequence[Image.Image]) -> np.ndarray:
    """Small blurred copies [B, F] of the middle squares, as bytes."""
    small = [ImageOps.fit(image.convert("RGB"), (SIDE, SIDE)) for image in images]
    return np.stack([np.asarray(s.filter(ImageFilter.GaussianBlur(BLUR))).ravel() for s in small])


def _answered(question: QuestionRow, known: Mapping[str, str]) -> Answered:
    said = known.get(question["question"], "")
    said = said if said in question["choices"] else ""
    return Answered(question, said, float(said == question["answer"]))


def write_nearest(
    draft: ArtifactWriter, pictures_RF: np.ndarray, answers: Sequence[Mapping[str, str]]
) -> None:
    """Keep the real pictures and their answers."""
    with draft.write(PICTURES) as path, path.open("wb") as file:
        np.save(file, pictures_RF)
    with draft.write(ANSWERS) as path:
        path.write_text(json.dumps(list(map(dict, answers))) + "\n", encoding="utf-8")


def read_nearest(folder: Path, types: Sequence[str] | None) -> Nearest:
    """The judge that `write_nearest` has kept."""
    answers = json.loads((folder / ANSWERS).read_text(encoding="utf-8"))
    return Nearest(np.load(folder / PICTURES), answers, types)
