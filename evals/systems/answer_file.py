"""Replies to a pool's questions that were collected elsewhere, as the system that reads.

A line of JSON has `record_id`, `question` (its text, as the pool has it) and `reply`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from PIL import Image

from core.errors import UserError
from core.files import sha256_of
from data.questions import QuestionRow
from data.tables import iter_batches
from evals.benchmarks.files import read_json_lines, wanted
from evals.systems.base import System
from evals.vqa import Answered, chosen, unanswered
from services.replies import EMPTY, UNUSABLE, choice_named, without_reasoning

NO_REPLY = "no reply"  # the file has none to the question
SHOWN = 3  # names of replies in a message
Asked = tuple[str, str]
"""A question of a pool: its record's id and its text."""
logger = logging.getLogger(__name__)


class AnswerFile(System):
    """Replies by record and question; those to no question of the pool are named and left out."""

    reads = True

    def __init__(self, file: Path, pool: Sequence[Path]) -> None:
        """`pool` are the files of the pool. UserError if the file answers none of its questions, or
        if a record asks the same with different choices, so that a reply could be to either."""
        if not file.is_file():
            raise UserError(f"--answers {file}: no such file")
        self._replies = _read(file)
        asked = _questions_of(pool)
        stray = [one for one in self._replies if one not in asked]
        if len(stray) == len(self._replies):
            raise UserError(
                f"--answers {file} has {len(stray)} replies, none to a question of the pool"
                f"{f', such as {stray[0]}' if stray else ''}; record_id and question are those of "
                f"the pool, such as {next(iter(asked), None)}"
            )
        if stray:
            logger.warning(
                "%d of %d replies are to no question of the pool and are left out, such as %s",
                len(stray), len(self._replies), ", ".join(map(str, stray[:SHOWN])),
            )  # fmt: skip
        super().__init__(str(file), {"kind": "answers", "answers": sha256_of(file)})

    def choose(
        self, pictures: Sequence[Image.Image], asked: Sequence[Sequence[QuestionRow]]
    ) -> list[list[Answered]]:
        raise UserError(f"{self.title} has replies about records of a pool, and reads no pictures")

    def choose_of_records(
        self, records: Sequence[Mapping[str, Any]], asked: Sequence[Sequence[QuestionRow]]
    ) -> list[list[Answered]]:
        return [
            [
                answer_of(row, self._replies.get((record["record_id"], row["question"])))
                for row in questions
            ]
            for record, questions in zip(records, asked, strict=True)
        ]


def answer_of(question: QuestionRow, reply: str | None) -> Answered:
    """The choice that a reply names, which then has all the probability, or why there is none.

    Replies are read as those of a server's model that names its choice: a letter (A for the first)
    or the words of exactly one choice.
    """
    if reply is None:
        return unanswered(question, NO_REPLY)
    text, _ = without_reasoning(reply)
    if not text:
        return unanswered(question, EMPTY)
    choices = question["choices"]
    index = choice_named(text, ascii_uppercase[: len(choices)], choices)
    if index is None:
        return unanswered(question, UNUSABLE)
    return chosen(question, [float(number == index) for number in range(len(choices))])


def _read(file: Path) -> dict[Asked, str]:
    """Replies by question; UserError for a line without one, or a question answered twice."""
    replies: dict[Asked, str] = {}
    for number, row in enumerate(read_json_lines(file), 1):
        where = f"--answers {file}, object {number}"
        record_id, question, reply = wanted(row, ("record_id", "question", "reply"), where)
        for name, value in (("record_id", record_id), ("question", question), ("reply", reply)):
            if not isinstance(value, str):
                raise UserError(f"{where}: {name} is {value!r}, and no text; put it in quotes")
        if (record_id, question) in replies:
            raise UserError(
                f"{where}: question {question!r} of record {record_id!r} is answered twice; leave "
                "one reply"
            )
        replies[record_id, question] = reply
    return replies


def _questions_of(pool: Sequence[Path]) -> dict[Asked, list[str]]:
    """The choices of each question of a pool; UserError where a text has several lists of them."""
    found: dict[Asked, list[str]] = {}
    for batch in iter_batches(pool, "pool", ["record_id", "questions"]):
        for record in batch.to_pylist():
            for row in record["questions"]:
                asked = (record["record_id"], row["question"])
                if found.setdefault(asked, row["choices"]) != row["choices"]:
                    raise UserError(
                        f"--answers: record {asked[0]!r} asks {asked[1]!r} twice with different "
                        "choices, so that a reply could be to either; leave one of them in the pool"
                    )
    return found
