"""Multiple-choice questions put to a model. Shapes: B images, N image tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from models.base import Codes, UnifiedModel
from models.caption_scorer import CaptionScorer

LEAST_PROBABILITY = 0.01


class QuestionRow(TypedDict):
    """A question as the pool table stores it."""

    type: str
    question: str
    choices: list[str]
    answer: str


@dataclass(frozen=True)
class Answered:
    """A model's answer: its choice, and the probability it gives to the right one."""

    question: QuestionRow
    prediction: str
    probability: float

    @property
    def right(self) -> bool:
        return self.prediction == self.question["answer"]


def ask(
    model: UnifiedModel,
    codes_BN: Codes,
    questions: Sequence[Sequence[QuestionRow]],
) -> list[list[Answered]]:
    """Answers to the questions of each image, by likelihood over the choices."""
    asked = [[(q["question"], q["choices"]) for q in image] for image in questions]
    answers = []
    for rows, probabilities in zip(questions, model.answer(codes_BN, asked), strict=True):
        image = []
        for row, probability_C in zip(rows, probabilities, strict=True):
            prediction = row["choices"][int(probability_C.argmax())]
            right = float(probability_C[row["choices"].index(row["answer"])])
            image.append(Answered(row, prediction, right))
        answers.append(image)
    return answers


def ask_by_decoding(
    model: UnifiedModel,
    codes_BN: Codes,
    questions: Sequence[Sequence[QuestionRow]],
    scorer: CaptionScorer,
) -> list[list[Answered]]:
    """Decoded answers mapped to the choice that they repeat, else to the nearest by embedding.

    The published way. There is no probability, so a right answer counts 1 and a wrong one 0.
    """
    asked = [[(q["question"], q["choices"]) for q in image] for image in questions]
    answers = []
    for rows, replies in zip(questions, model.reply(codes_BN, asked), strict=True):
        image = []
        for row, reply in zip(rows, replies, strict=True):
            prediction = nearest_choice(reply, row["choices"], scorer)
            image.append(Answered(row, prediction, float(prediction == row["answer"])))
        answers.append(image)
    return answers


def nearest_choice(reply: str, choices: Sequence[str], scorer: CaptionScorer) -> str:
    """The choice that a reply means; the first of equally near ones."""
    if reply in choices:
        return reply
    similarity = scorer.score([reply] * len(choices), [[choice] for choice in choices])
    return choices[similarity.index(max(similarity))]


def hard_score(answers: Sequence[Answered]) -> float:
    """Share of right answers, at least one of them: nothing asked is no score, not one of 0."""
    return sum(a.right for a in answers) / len(answers)


def soft_score(answers: Sequence[Answered]) -> float:
    """Mean probability of the right choice; separates what the hard score ties."""
    return sum(a.probability for a in answers) / len(answers)


def geometric_score(answers: Sequence[Answered]) -> float:
    """Geometric mean of the probabilities of the right choices: one sure mistake outweighs all.

    A probability below `LEAST_PROBABILITY` counts as that, so that the other answers still matter.
    """
    logs = (math.log(max(a.probability, LEAST_PROBABILITY)) for a in answers)
    return math.exp(sum(logs) / len(answers))
