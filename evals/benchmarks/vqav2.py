"""VQAv2 (Goyal et al. 2017): open questions with ten human answers each.

Reads `v2_OpenEnded_mscoco_val2014_questions.json`, `v2_mscoco_val2014_annotations.json` and
`val2014/` with pictures of COCO. Answers are normalised as EvalAI does, which scores the challenge.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pandas as pd

from core.errors import UserError
from evals.benchmarks.base import ANSWERED, EMPTY, Item, Verdict
from evals.benchmarks.figures import Figure, score_figures
from evals.benchmarks.files import find_file, read_json, wanted
from evals.benchmarks.reading import SHORT_ANSWER, Reading

ARTICLES = ("a", "an", "the")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBERS)}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# Each is also understood without one of its apostrophes.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""
CONTRACTIONS = (
    {"somebody'd": "somebodyd"}
    | {  # a slip of the original, kept
        word[:at] + word[at + 1 :]: word
        for word in _CONTRACTIONS.split()
        for at, letter in enumerate(word)
        if letter == "'"
    }
)
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
_PERIOD = re.compile(r"\.(?!\d)")


class VqaV2(Reading):
    """Questions with the answers of ten people."""

    name = "vqav2"
    cue, folders = SHORT_ANSWER, ("val2014", "images", ".")

    def items(self) -> list[Item]:
        """All questions, those about a picture together; UserError if one has no annotation."""
        questions = self._table("questions")
        annotations = self._table("annotations")
        if set(questions) != set(annotations):
            odd = sorted(set(questions) ^ set(annotations))
            raise UserError(
                f"folder {self._data}: {len(odd)} question ids are in one of questions and "
                f"annotations only, such as {odd[0]}; fetch both of the same split"
            )
        items = []
        for question_id, row in questions.items():
            image_id, text = wanted(row, ("image_id", "question"), f"question {question_id}")
            told = annotations[question_id]
            kind, given = wanted(told, ("answer_type", "answers"), f"annotation {question_id}")
            answers = json.dumps([answer["answer"] for answer in given])
            image = f"COCO_val2014_{image_id:012d}.jpg"
            items.append(Item(str(question_id), kind, image, text, answers, image))
        return sorted(items, key=lambda item: (item.image, item.item_id))

    def _table(self, kind: str) -> dict[int, dict[str, object]]:
        path = find_file(self._data, [f"v2_*val2014_{kind}.json", f"*{kind}.json"], kind)
        (rows,) = wanted(read_json(path), (kind,), str(path))
        return {row["question_id"]: row for row in rows}

    def judge(self, item: Item, reply: str) -> Verdict:
        """Agreement with the ten answers; an empty reply agrees with none."""
        said = normalise(reply)
        score = agreement(said, [normalise(answer) for answer in json.loads(item.answer)])
        return Verdict(said, score, ANSWERED if reply.strip() else EMPTY)

    @staticmethod
    def item_figures(rows: pd.DataFrame) -> list[Figure]:
        """Accuracy in percent, over all and by type of answer."""
        return score_figures(rows, "accuracy", 100)


def agreement(said: str, answers: Sequence[str]) -> float:
    """Mean over each answer left out of min(1, how many of the others agree / 3)."""
    agree = sum(answer == said for answer in answers)
    return sum(min(1.0, (agree - (answer == said)) / 3) for answer in answers) / len(answers)


def normalise(answer: str) -> str:
    """An answer without punctuation, articles and capitals, with digits and apostrophes."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    in_number = _COMMA_IN_NUMBER.search(text) is not None
    bare = text
    for mark in PUNCTUATION:
        # Between two words it becomes a blank, at the edge of one it vanishes.
        at_edge = mark + " " in text or " " + mark in text
        bare = bare.replace(mark, "" if at_edge or in_number else " ")
    words = [DIGITS.get(word, word) for word in _PERIOD.sub("", bare).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


BENCHMARK = VqaV2
