"""DPG-Bench (Hu et al. 2024, arXiv 2403.05135): long prompts, and questions that build on others.

Reads `dpg_bench.csv`. A question counts as answered with no where one that it depends on is. The
published figures are mPLUG-large's answers, so figures of another judge are not comparable; the
settings of a run name it. Two slips of the published script are not repeated: it leaves out the
first row of the file, and takes figures by category from the last picture of a prompt only.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from PIL import Image

from core.benchmarks import ENDPOINT, SELF
from core.errors import UserError
from core.runtime import derive_seed
from evals.benchmarks.base import ANSWERED, NO_ANSWER, PARTLY, UNCLEAR, Item, Opening, Row, Verdict
from evals.benchmarks.drawing import Drawing
from evals.benchmarks.figures import ALL, Figure, mean_of, score_figures, strata
from evals.benchmarks.files import find_file, wanted
from evals.benchmarks.judging import endpoint_client
from evals.checkpoints import open_checkpoint
from evals.systems.base import Question, System
from evals.systems.checkpoint import CheckpointSystem
from services.endpoint import Client, data_url
from services.replies import NoAnswer

FIELDS = (
    "item_id", "text", "proposition_id", "dependency", "category_broad",
    "question_natural_language",
)  # fmt: skip
YES_NO = ("yes", "no")


class SystemJudge:
    """A system as the judge; it sees pixels, as any judge from outside would."""

    def __init__(self, system: System) -> None:
        self._system = system

    def answers(
        self, pictures: Sequence[Image.Image], questions: Sequence[str]
    ) -> Sequence[Sequence[str]]:
        """Decoded answers."""
        asked = [[Question(question, YES_NO) for question in questions]] * len(pictures)
        return [
            ["" if isinstance(reply, NoAnswer) else reply for reply in said]
            for said in self._system.reply(pictures, asked)
        ]


class EndpointJudge:
    """A vision-language model of a server, which takes the more probable of yes and no."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def answers(
        self, pictures: Sequence[Image.Image], questions: Sequence[str]
    ) -> Sequence[Sequence[str]]:
        """The more probable word; empty where the server gave no answer, which is not scored."""
        asked = [(url, question) for url in map(data_url, pictures) for question in questions]
        said = iter(list(self._client.map(self._answer, asked)))
        return [[next(said) for _ in questions] for _ in pictures]

    def _answer(self, asked: tuple[str, str]) -> str:
        url, question = asked
        seed = derive_seed("dpg", question)
        weights = self._client.weigh(question, YES_NO, seed=seed, picture=url)
        return "" if isinstance(weights, NoAnswer) else YES_NO[weights.index(max(weights))]


VqaJudge = SystemJudge | EndpointJudge
"""Who gives the answer to each question about each picture."""


class DpgBench(Drawing):
    """All prompts, four pictures each."""

    name = "dpg"

    def __init__(
        self,
        data: Path,
        judge: SystemJudge | EndpointJudge | None,
        judge_digest: str,
    ) -> None:
        """`judge` None: the system itself answers."""
        super().__init__({"judge": judge_digest})
        self._data, self._judge = data, judge

    @classmethod
    def open(cls, opening: Opening) -> Self:
        """With its judge: the system itself, that of a server, or another checkpoint."""
        named, config = opening.chosen.judges["judge"], opening.config
        if named == SELF:
            return cls(opening.folder, None, SELF)
        if named == ENDPOINT:
            client, name = endpoint_client(opening)
            return cls(opening.folder, EndpointJudge(client), name)
        checkpoint = open_checkpoint(named)
        judge = SystemJudge(CheckpointSystem.of(config, checkpoint))
        return cls(opening.folder, judge, checkpoint.digest)

    def items(self) -> list[Item]:
        """All prompts, each with its questions."""
        path = find_file(self._data, ["dpg_bench.csv"], "prompts with questions")
        prompts: dict[str, tuple[str, list[dict[str, Any]]]] = {}
        with open(path, encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                where = f"{path}, row {number}"
                item_id, text, *question = wanted(row, FIELDS, where)
                prompts.setdefault(item_id, (text, []))[1].append(_question(question, where))
        for item_id, (_, questions) in prompts.items():
            _check(questions, f"{path}, item {item_id}")
        return [
            Item(item_id, "", item_id, text, json.dumps(questions))
            for item_id, (text, questions) in prompts.items()
        ]

    def run(self, system: System, items: Sequence[Item]) -> Mapping[str, list[Row]]:
        self._asked = self._judge or SystemJudge(system)
        return super().run(system, items)

    def grade(self, item: Item, pictures: Sequence[Image.Image]) -> list[Verdict]:
        questions = json.loads(item.answer)
        texts = [question["question"] for question in questions]
        return [_verdict(questions, said) for said in self._asked.answers(pictures, texts)]

    @staticmethod
    def item_figures(rows: pd.DataFrame) -> list[Figure]:
        return score_figures(rows, "score", 100)

    def figures(self, rows: pd.DataFrame) -> list[Figure]:
        """The score in percent, and by category the share of yes, whatever it depends on."""
        (scores,) = strata(rows, ["score"]).values()
        figures = [Figure("score", ALL, [scores], mean_of(0, 100))]
        for category, part in strata(_answers(rows), ["score"]).items():
            figures.append(Figure("yes", category, [part], mean_of(0, 100)))
        return figures


def _question(values: Sequence[str], where: str) -> dict[str, Any]:
    proposition, dependency, category, question = values
    try:
        parents = [int(parent) for parent in dependency.split(",")]
        number = int(proposition)
    except ValueError:
        raise UserError(
            f"{where}: proposition_id {proposition!r} or dependency {dependency!r} is no number"
        ) from None
    parents = [parent for parent in parents if parent != 0]
    return {"id": number, "parents": parents, "category": category, "question": question}


def _check(questions: Sequence[Mapping[str, Any]], where: str) -> None:
    known = {question["id"] for question in questions}
    for question in questions:
        for parent in question["parents"]:
            if parent not in known:
                raise UserError(
                    f"{where}: proposition {question['id']} depends on {parent}, which is not there"
                )


def _verdict(questions: Sequence[Mapping[str, Any]], replies: Sequence[str]) -> Verdict:
    said = [reply.strip().rstrip(".").lower() for reply in replies]
    answers = {q["id"]: answer == "yes" for q, answer in zip(questions, said, strict=True)}
    silent = {q["id"] for q, answer in zip(questions, said, strict=True) if not answer}
    # Nothing is known about what depends on a question without an answer, however far.
    while more := {q["id"] for q in questions if silent & set(q["parents"])} - silent:
        silent |= more
    scored = [q for q in questions if q["id"] not in silent]
    if not scored:
        return Verdict(json.dumps(said), 0.0, NO_ANSWER)
    unclear = any(answer and answer not in YES_NO for answer in said)
    status = PARTLY if silent else UNCLEAR if unclear else ANSWERED
    return Verdict(json.dumps(said), dependent_score(scored, answers), status)


def dependent_score(questions: Sequence[Mapping[str, Any]], yes: Mapping[int, bool]) -> float:
    """Share of yes, where a question with a parent of no is a no, in the order of the questions.

    So the no of a grandparent comes through if its child was asked earlier, as published.
    """
    counted = {question["id"]: yes[question["id"]] for question in questions}
    for question in questions:
        if not all(counted[parent] for parent in question["parents"]):
            counted[question["id"]] = False
    return sum(counted.values()) / len(counted)


def _answers(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each answer, of the category of its question."""
    answers = [
        {"unit": row.unit, "group": question["category"], "score": np.float64(said == "yes")}
        for row in rows.itertuples()
        for question, said in zip(
            json.loads(str(row.answer)), json.loads(str(row.prediction)), strict=True
        )
        if said
    ]
    return pd.DataFrame(answers)


BENCHMARK = DpgBench
