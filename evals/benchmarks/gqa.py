"""GQA (Hudson and Manning 2019), testdev balanced: one word or phrase is right.

Reads `testdev_balanced_questions.json` and `images/`.
"""

from __future__ import annotations

import string

import pandas as pd

from evals.benchmarks.base import ANSWERED, EMPTY, Item, Verdict
from evals.benchmarks.figures import Figure, score_figures
from evals.benchmarks.files import find_file, read_json, wanted
from evals.benchmarks.reading import SHORT_ANSWER, Reading

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Gqa(Reading):
    """Balanced questions, by what they are about (structural type)."""

    name = "gqa"
    cue, folders = SHORT_ANSWER, ("images", ".")

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

    def judge(self, item: Item, reply: str) -> Verdict:
        """Whether a reply is the answer, but for capitals and punctuation."""
        said = normalise(reply)
        right = said == normalise(item.answer)
        return Verdict(said, float(right), ANSWERED if reply.strip() else EMPTY)

    @staticmethod
    def item_figures(rows: pd.DataFrame) -> list[Figure]:
        """Accuracy in percent, over all and by structural type."""
        return score_figures(rows, "accuracy", 100)


def normalise(text: str) -> str:
    """Lower case without punctuation, as lmms-eval compares.

    LLaVA's conversion takes away the last full stop only, and GQA's own script compares as is.
    """
    return text.lower().translate(_NO_PUNCTUATION)


BENCHMARK = Gqa
