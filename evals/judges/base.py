"""What a judge is, and whether it is independent of what chose the winners.

A judge that is the model itself, or a relative of it, measures how much the model likes its own
drawings. Only an independent one can show that they became better.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from core.artifact_writer import ArtifactWriter
from data.questions import QuestionRow
from evals.vqa import Answered

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Provenance:
    """Who judges: `name` reads in the middle of a sentence, `why` says why it is independent or
    not, in a clause."""

    kind: str
    name: str
    independent: bool
    why: str


class Judge(ABC):
    """Reads generated images."""

    def questions(self, records: Sequence[Row]) -> list[list[QuestionRow]]:
        """What it can be asked about each record; the model is asked the same about real ones."""
        return [list(record["questions"]) for record in records]

    @abstractmethod
    def answers(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[QuestionRow]]
    ) -> list[list[Answered]]:
        """What each question of each image comes to."""

    def num_cut(self, questions: Sequence[Sequence[QuestionRow]]) -> int:
        """How many texts of questions it sees only in part."""
        return 0

    def malformed(self, images: Sequence[Image.Image]) -> list[float]:
        """1 for each image with something that is no known shape, if the judge can tell."""
        return [0.0] * len(images)

    def keep_counts(self, draft: ArtifactWriter, part: int) -> None:  # noqa: B027, since most count nothing
        """Keep what the answers about the images of a part have cost, if that is counted."""


def of_types(records: Sequence[Row], types: Sequence[str] | None) -> list[list[QuestionRow]]:
    """The questions of each record that are of these types; None: all of them."""
    return [
        [q for q in record["questions"] if types is None or q["type"] in types]
        for record in records
    ]
