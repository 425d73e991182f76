"""What a system under test is: something that replies about pictures, draws prompts, or both.

Benchmarks and the gap know a system by this alone, so that one code measures a checkpoint, a
server and a folder of pictures. What a system does not give (a refused prompt, a missing file) has
a reason and is counted, never scored as zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from core.errors import UserError
from data.questions import QuestionRow
from data.tables import decode_image
from evals.vqa import Answered
from services.replies import NoAnswer

DESCRIBE = "Describe the picture in one short sentence."
"""How systems are asked for a caption that have no way of their own."""
NOTHING: npt.NDArray[np.int64] = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Question:
    """A question about a picture, and the choices of its reply if it has some."""

    text: str
    choices: Sequence[str] = ()

    @property
    def worded(self) -> str:
        """The question with its choices in words."""
        offered = f"\nReply with one of: {', '.join(self.choices)}." if self.choices else ""
        return self.text + offered


@dataclass(frozen=True)
class Prompt:
    """What is to be drawn, under the id of its item or record; `seed` decides about all noise."""

    item_id: str
    text: str
    seed: int = 0


@dataclass(frozen=True)
class Picture:
    """A drawn picture, with the codes that it was drawn as, if it was."""

    image: Image.Image
    codes: npt.NDArray[np.int64] = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True)
class NoPicture:
    """That there is no picture, and why."""

    reason: str


Drawing = Picture | NoPicture


class System:
    """A system under test.

    `title` is how figures name it. `recipe` is what decides about its answers and pictures, as JSON
    has it: digests, sampling. It is known before anything is loaded. What a system `reads` and
    `draws` says which of its methods it has.
    """

    reads = False
    draws = False

    def __init__(self, title: str, recipe: Mapping[str, object]) -> None:
        self.title, self.recipe = title, recipe

    def reply(
        self, pictures: Sequence[Image.Image], asked: Sequence[Sequence[Question]]
    ) -> list[list[str | NoAnswer]]:
        """A greedy reply to each question about each picture."""
        raise UserError(f"{self.title} reads no pictures; give a system that does")

    def caption(self, pictures: Sequence[Image.Image], max_new_tokens: int) -> list[str | NoAnswer]:
        """A greedy caption of each picture."""
        raise UserError(f"{self.title} reads no pictures; give a system that does")

    def choose(
        self, pictures: Sequence[Image.Image], asked: Sequence[Sequence[QuestionRow]]
    ) -> list[list[Answered]]:
        """The most probable choice of each question about each picture."""
        raise UserError(f"{self.title} reads no pictures; give a system that does")

    def choose_of_records(
        self, records: Sequence[Mapping[str, Any]], asked: Sequence[Sequence[QuestionRow]]
    ) -> list[list[Answered]]:
        """The same about the true pictures of records of a pool."""
        return self.choose([decode_image(record["image"]) for record in records], asked)

    def draw(self, prompts: Sequence[Prompt], num_pictures: int) -> list[list[Drawing]]:
        """`num_pictures` of each prompt."""
        raise UserError(f"{self.title} draws nothing; give a system that does")

    def cut(self, prompts: Sequence[str]) -> list[bool]:
        """Whether each prompt is longer than what the system sees of it, as far as is known."""
        return [False] * len(prompts)
