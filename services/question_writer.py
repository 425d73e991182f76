"""Questions about a caption, written and checked by a language model, after arXiv 2303.11897.

The model writes multiple-choice questions from the caption. Then it answers them from the caption,
once without and once with the choices: a question stays if both answers are the one it was written
with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from core.runtime import derive_seed
from data.questions import TYPES, normalised, plain, surplus_yes_no, token_f1, usable_choices
from services.endpoint import Client, user_message
from services.replies import NoAnswer

PROMPT_VERSION = "1"
"""Raise it with any change of the prompts, or of the forms and rules below."""
WRITE = """\
Here is the caption of a picture:

{caption}

Write up to {number} multiple-choice questions that show whether another picture fits this caption.
- Take each thing, person, animal, food, activity, number, color, material, shape, position, place
  and other attribute that the caption names, and ask about it once.
- Whoever has read the caption must know the answer, and whoever has not must look at the picture.
- Ask some as yes-or-no questions with the choices yes and no. The answer is no in half of them: ask
  there for something that the caption rules out.
- Other questions have four short choices, of which exactly one fits the caption.
- The answer is one of the choices, word for word.
For every question give the entity (the word of the caption that it is about), its type, the
question, the choices and the answer."""
ANSWER = """\
Here is the caption of a picture:

{caption}

{question}
Answer from the caption alone, in as few words as possible: with yes or no, with a number, or with
words of the caption. If the caption does not say it, answer unknown."""
CHOOSE = """\
Here is the caption of a picture:

{caption}

{question}"""
QUESTION_TOKENS = 256  # far more than a question and its choices need
REPLY_TOKENS = 64

POOL, LLM = "pool", "llm"
# Why a question was dropped.
NO_CHOICES, DUPLICATE, NO_REPLY = "choices", "duplicate", "no_reply"
OTHER_REPLY, OTHER_CHOICE, YES_NO_BALANCE = "other_reply", "other_choice", "yes_no_balance"
REASONS = (NO_CHOICES, DUPLICATE, NO_REPLY, OTHER_REPLY, OTHER_CHOICE, YES_NO_BALANCE)

Text = Annotated[str, Field(min_length=1, max_length=160)]
Short = Annotated[str, Field(min_length=1, max_length=60)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Question(_Form):
    entity: Short
    type: Literal[TYPES]  # type: ignore[valid-type]
    question: Text
    choices: Annotated[list[Short], Field(min_length=2, max_length=6)]
    answer: Short


class _Reply(_Form):
    answer: Short


@dataclass
class Candidate:
    """A question of a record and what became of it; `f1` is -1 where nobody was asked."""

    type: str
    question: str
    choices: list[str]
    answer: str
    source: str = LLM
    entity: str = ""
    reply: str = ""
    f1: float = -1.0
    reason: str = ""

    @property
    def kept(self) -> bool:
        return not self.reason

    def row(self) -> dict[str, Any]:
        """As the pool table stores it."""
        return {
            "type": self.type,
            "question": self.question,
            "choices": self.choices,
            "answer": self.answer,
        }


class QuestionWriter:
    """Writes and checks the questions of records, at most `per_record` for each."""

    def __init__(self, client: Client, per_record: int, min_f1: float) -> None:
        self._client, self._min_f1 = client, min_f1
        self._per_record = per_record
        several: Any = Annotated[list[_Question], Field(min_length=1, max_length=per_record)]
        self._form = create_model("Questions", __base__=_Form, questions=(several, ...))

    def candidates(
        self, record_id: str, caption: str, own: Sequence[dict[str, Any]]
    ) -> list[Candidate]:
        """A record's own questions as they are, then all that were written, checked."""
        brought = [Candidate(**question, source=POOL) for question in own]
        seed = derive_seed("questions", PROMPT_VERSION, record_id)
        written = self._write(caption, seed)
        seen = {normalised(candidate.question) for candidate in brought}
        for number, candidate in enumerate(written):
            candidate.reason = _fault(candidate, seen)
            if candidate.kept:
                self._check(candidate, caption, derive_seed(seed, number))
        kept = [candidate for candidate in written if candidate.kept]
        for index in surplus_yes_no([candidate.answer for candidate in kept]):
            kept[index].reason = YES_NO_BALANCE
        return brought + written

    def _write(self, caption: str, seed: int) -> list[Candidate]:
        message = user_message(WRITE.format(caption=caption, number=self._per_record))
        tokens = QUESTION_TOKENS * self._per_record
        written = self._client.answer(message, self._form, max_tokens=tokens, seed=seed)
        found: list[_Question] = [] if isinstance(written, NoAnswer) else written.questions  # type: ignore[attr-defined]
        return [
            Candidate(
                type=question.type,
                question=plain(question.question),
                choices=[plain(choice) for choice in question.choices],
                answer=plain(question.answer),
                entity=plain(question.entity),
            )
            for question in found
        ]

    def _check(self, candidate: Candidate, caption: str, seed: int) -> None:
        """Note what the caption answers, without and with the choices."""
        asked = {"caption": caption, "question": candidate.question}
        message = user_message(ANSWER.format(**asked))
        reply = self._client.answer(message, _Reply, max_tokens=REPLY_TOKENS, seed=seed)
        if isinstance(reply, NoAnswer):
            candidate.reason = NO_REPLY
            return
        candidate.reply = plain(reply.answer)
        candidate.f1 = token_f1(candidate.reply, candidate.answer)
        if candidate.f1 <= self._min_f1:
            candidate.reason = OTHER_REPLY
            return
        weights = self._client.weigh(CHOOSE.format(**asked), candidate.choices, seed=seed)
        if isinstance(weights, NoAnswer):
            candidate.reason = NO_REPLY
        elif candidate.choices[weights.index(max(weights))] != candidate.answer:
            candidate.reason = OTHER_CHOICE


def _fault(candidate: Candidate, seen: set[str]) -> str:
    """Why a question need not be checked, empty if it must; puts its choices in order."""
    usable = usable_choices(candidate.choices, candidate.answer)
    text = normalised(candidate.question)
    if usable is None or not text:
        return NO_CHOICES
    candidate.choices, candidate.answer = usable
    if text in seen:
        return DUPLICATE
    seen.add(text)
    return ""
