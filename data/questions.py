"""What makes a written question usable, by rules of text alone. After TIFA (arXiv 2303.11897).

A language model has written questions about a caption, and answered them from the caption without
seeing the choices; these functions compare what it said.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TypedDict


class QuestionRow(TypedDict):
    """A question as the pool table stores it."""

    type: str
    question: str
    choices: list[str]
    answer: str


TYPES = (
    *("object", "human", "animal", "food", "activity", "attribute", "counting", "color"),
    *("material", "spatial", "location", "shape", "other"),
)
ARTICLES = {"a", "an", "the"}
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)}
YES_NO = ("yes", "no")


def plain(text: str) -> str:
    """Text on one line, without blanks at its ends or twice in a row, and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def told_apart_by(text: str) -> str:
    """What tells a choice from another to a reader: no capitals, blanks, or forms of a letter."""
    composed = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    shown = "".join(
        c for c in composed if unicodedata.category(c) not in ("Cc", "Cf") or c.isspace()
    )
    return " ".join(shown.split())


def normalised(text: str) -> str:
    """Text by which answers and questions are compared: small letters, digits for number words,
    neither articles nor punctuation. Empty text is possible."""
    words = re.sub(r"[^\w\s]|_", " ", text.lower()).split()
    return " ".join(DIGITS.get(word, word) for word in words if word not in ARTICLES)


def token_f1(one: str, other: str) -> float:
    """F1 of the tokens that two texts share once normalised, from 0 to 1; 1 if both are empty."""
    left, right = normalised(one).split(), normalised(other).split()
    if not left or not right:
        return float(left == right)
    shared = sum((Counter(left) & Counter(right)).values())
    return 2 * shared / (len(left) + len(right))


def usable_choices(choices: Sequence[str], answer: str) -> tuple[list[str], str] | None:
    """Choices that differ, and the one that the answer names; None if they make no question.

    A choice that says the same as one before it is left out.
    """
    different = {normalised(choice): choice for choice in reversed(choices) if normalised(choice)}
    kept = [choice for choice in choices if different.get(normalised(choice)) is choice]
    right = different.get(normalised(answer))
    return None if right is None or len(kept) < 2 else (kept, right)


def surplus_yes_no(answers: Sequence[str]) -> list[int]:
    """Which of a record's questions to drop, so that yes and no are right about equally often.

    Models write questions whose answer is yes, and who always said yes would be right about any
    picture. So the more frequent answer may be ahead by one; of the rest the last ones go.
    """
    positions = {
        word: [i for i, answer in enumerate(answers) if normalised(answer) == word]
        for word in YES_NO
    }
    fewer = min(len(found) for found in positions.values())
    return sorted(index for found in positions.values() for index in found[fewer + 1 :])
