"""Multiple-choice questions put to a model. Shapes: B images, N image tokens.

One rule for every judge, the model itself included: an answer is scored only if it is one. What was
not answered has a status that says why, is counted, and enters no score.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.errors import UserError
from data.questions import QuestionRow, normalised
from evals.networks.caption_scorer import CaptionScorer
from models.protocol import Seen, UnifiedModel
from services.replies import EMPTY, UNUSABLE

LEAST_PROBABILITY = 0.01
ANSWERED = "answered"
ALIKE = "choices alike"
"""The model cannot tell choices apart, since they differ behind its text budget or not at all."""
FEW = 50  # answers from which a share is looked at
Tally = Counter[str]
"""How many questions came to which status."""


@dataclass(frozen=True)
class Answered:
    """What a question came to: a choice, with the probability of the right one, or no answer.

    A prediction that is none of the choices is an answer where a judge can say that none fits.
    """

    question: QuestionRow
    prediction: str
    probability: float
    status: str = ANSWERED

    @property
    def answered(self) -> bool:
        return self.status == ANSWERED

    @property
    def right(self) -> bool:
        return self.answered and self.prediction == self.question["answer"]


def unanswered(question: QuestionRow, reason: str) -> Answered:
    """That a question has no answer, and why."""
    return Answered(question, "", 0.0, reason)


def chosen(question: QuestionRow, weights: Sequence[float] | npt.NDArray[np.float64]) -> Answered:
    """The most probable choice; no answer if the weights are no probabilities."""
    weights_C = np.asarray(weights, np.float64)
    if not np.isfinite(weights_C).all() or weights_C.sum() <= 0:
        return unanswered(question, UNUSABLE)
    choices = question["choices"]
    right = float(weights_C[choices.index(question["answer"])])
    return Answered(question, choices[int(weights_C.argmax())], right)


def ask(
    model: UnifiedModel,
    seen: Seen,
    questions: Sequence[Sequence[QuestionRow]],
) -> list[list[Answered]]:
    """Answers to the questions of each image, by likelihood over the choices."""
    asked = [[(q["question"], q["choices"]) for q in image] for image in questions]
    alike = _alike(model, questions)
    return [
        [
            unanswered(row, ALIKE) if tuple(row["choices"]) in alike else chosen(row, weights_C)
            for row, weights_C in zip(rows, probabilities, strict=True)
        ]
        for rows, probabilities in zip(questions, model.answer(seen, asked), strict=True)
    ]


def _alike(model: UnifiedModel, questions: Sequence[Sequence[QuestionRow]]) -> set[tuple[str, ...]]:
    """Sets of choices of which the model sees two as the same tokens."""
    sets = {tuple(question["choices"]) for image in questions for question in image}
    texts = list(dict.fromkeys(choice for choices in sets for choice in choices))
    ids = dict(zip(texts, (use.ids for use in model.text_uses(texts, "answer")), strict=True))
    return {choices for choices in sets if len({ids[c] for c in choices}) < len(choices)}


def ask_by_decoding(
    model: UnifiedModel,
    seen: Seen,
    questions: Sequence[Sequence[QuestionRow]],
    scorer: CaptionScorer,
) -> list[list[Answered]]:
    """Decoded answers mapped to the choice that they repeat, else to the nearest by embedding.

    The published way. There is no probability, so a right answer counts 1 and a wrong one 0. A
    reply without a word is no answer, nor is one that is equally near to several choices.
    """
    asked = [[(q["question"], q["choices"]) for q in image] for image in questions]
    replies = model.reply(seen, asked)
    return [
        [_by_reply(row, reply, scorer) for row, reply in zip(rows, said, strict=True)]
        for rows, said in zip(questions, replies, strict=True)
    ]


def _by_reply(row: QuestionRow, reply: str, scorer: CaptionScorer) -> Answered:
    if not normalised(reply) and reply not in row["choices"]:
        return unanswered(row, EMPTY)
    prediction = nearest_choice(reply, row["choices"], scorer)
    if prediction is None:
        return unanswered(row, UNUSABLE)
    return Answered(row, prediction, float(prediction == row["answer"]))


def nearest_choice(reply: str, choices: Sequence[str], scorer: CaptionScorer) -> str | None:
    """The choice that a reply means; None if several are equally near."""
    if reply in choices:
        return reply
    similarity = scorer.score([reply] * len(choices), [[choice] for choice in choices])
    near = [c for c, s in zip(choices, similarity, strict=True) if s > max(similarity) - 1e-6]
    return near[0] if len(near) == 1 else None


def hard_score(answers: Sequence[Answered]) -> float:
    """Share of right answers, at least one of them: nothing answered is no score, not one of 0."""
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


def only_answered(answers: Iterable[Answered]) -> list[Answered]:
    """Those that are answers."""
    return [one for one in answers if one.answered]


def tally(answers: Iterable[Iterable[Answered]]) -> Tally:
    """What questions came to."""
    return Counter(one.status for image in answers for one in image)


def check_answered(counts: Mapping[str, int], limit: float, field: str, who: str) -> None:
    """UserError if more than `limit` of more than a few questions have no answer."""
    total = sum(counts.values())
    missing = total - counts.get(ANSWERED, 0)
    if total < FEW or missing <= limit * total:
        return
    help_ = "see what it says, or ask a model that answers such questions"
    if max((one for one in counts if one != ANSWERED), key=counts.__getitem__) == ALIKE:
        help_ = "shorten the choices, or leave out those that say the same"
    raise UserError(
        f"{missing} of {total} questions ({missing / total:.0%}) had no answer from {who} "
        f"({show_reasons(counts)}), more than {field} = {limit:g} allows; {help_}, or raise "
        f"{field} to go on without them"
    )


def show_reasons(counts: Mapping[str, int]) -> str:
    """`truncated 12, empty 3`, the most frequent first."""
    reasons = [(n, name) for name, n in counts.items() if name != ANSWERED and n]
    return ", ".join(f"{name} {n}" for n, name in sorted(reasons, reverse=True))
