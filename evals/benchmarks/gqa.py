"""GQA (Hudson and Manning 2019), testdev balanced: one word or phrase is right.

Reads `testdev_balanced_questions.json` and `images/`.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from evals.benchmarks.base import ANSWERED, EMPTY, Item, Opening, Row, Verdict
from evals.benchmarks.figures import Figure, score_figures
from evals.benchmarks.files import ImageFolder, find_file, read_json, wanted
from evals.benchmarks.reading import SHORT_ANSWER, read_items
from models.protocol import UnifiedModel

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Gqa:
    """Balanced questions, by what they are about (structural type)."""

    name = "gqa"
    settings: Mapping[str, object] = {"cue": SHORT_ANSWER}

    def __init__(self, data: Path) -> None:
        self._data = data
        self._images = ImageFolder([data / "images", data])

    def items(self) -> list[Item]:
        """All questions, those about a picture together."""
        path = find_file(self._data, ["testdev_balanced_questions.json"], "questions")
        items = []
        for question_id, row in read_json(path).items():
            fields = ("question", "imageId", "answer")
            text, image_id, answer = wanted(row, fields, f"{path}, question {question_id}")
            kind = row.get("types", {}).get("structural", "")
            image = f"{image_id}.jpg"
            items.append(Item(question_id, kind, image, text, answer, image))
        return sorted(items, key=lambda item: (item.image, item.item_id))

    def run(self, model: UnifiedModel, items: Sequence[Item]) -> Mapping[str, list[Row]]:
        """Rows of the items, as the model answers them."""
        return read_items(
            model, items, lambda item: self._images.open(item.image), self.judge, cue=SHORT_ANSWER
        )

    def judge(self, item: Item, reply: str) -> Verdict:
        """Whether a reply is the answer, but for capitals and punctuation."""
        said = normalise(reply)
        right = said == normalise(item.answer)
        return Verdict(said, float(right), ANSWERED if reply.strip() else EMPTY)

    def figures(self, rows: pd.DataFrame) -> list[Figure]:
        """Accuracy in percent, over all and by structural type."""
        return score_figures(rows, "accuracy", 100)


def normalise(text: str) -> str:
    """Lower case without punctuation, as lmms-eval compares.

    LLaVA's conversion takes away the last full stop only, and GQA's own script compares as is.
    """
    return text.lower().translate(_NO_PUNCTUATION)


def open_benchmark(opening: Opening) -> Gqa:
    """The benchmark over its published files."""
    return Gqa(opening.folder)


def item_figures(rows: pd.DataFrame) -> Sequence[Figure]:
    """Figures of scored items alone."""
    return score_figures(rows, "accuracy", 100.0)
