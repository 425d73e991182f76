"""GenEval 2 (Kamath et al. 2025, arXiv 2512.16853): are all atoms of a prompt in its picture?

Reads `geneval2_data.jsonl`: prompts of 3 to 10 atoms, each with questions and wanted answers. By
Soft-TIFA an atom is worth the probability that a reply begins with the wanted answer; a prompt is
worth the arithmetic mean of its atoms (AM) or the geometric one (GM). The published judge is
Qwen3-VL-8B-Instruct. Servers list few tokens: with an answer that is not among them an atom is
worth 0, and `soft_tifa_gm_at_most` says what GM could be.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from PIL import Image

from core.benchmarks import ENDPOINT, SELF
from core.errors import UserError
from data.questions import DIGITS
from evals.benchmarks.base import ANSWERED, NO_ANSWER, PARTLY, Item, Opening, Verdict
from evals.benchmarks.drawing import Drawing
from evals.benchmarks.figures import ALL, Figure, mean_of, strata
from evals.benchmarks.files import find_file, read_json_lines, wanted
from evals.benchmarks.judging import endpoint_client
from evals.checkpoints import open_checkpoint
from evals.judges.first_token import (
    Asked,
    EndpointProbabilities,
    FirstTokenJudge,
    Mass,
    ModelProbabilities,
)
from evals.systems.vlm import ImageTextSystem

CUE = " Answer in one word."
COUNTING = "How many"
YES = ("Yes", "yes", " Yes", " yes")


class GenEval2(Drawing):
    """All prompts, a picture each."""

    name = "geneval2"
    num_pictures = 1

    def __init__(self, data: Path, judge: FirstTokenJudge, judge_digest: str) -> None:
        super().__init__({"judge": judge_digest, "cue": CUE})
        self._data, self._judge = data, judge

    @classmethod
    def open(cls, opening: Opening) -> Self:
        """With its judge: the model of a server, or one of transformers in a folder."""
        named, config = opening.chosen.judges["judge"], opening.config
        if named == SELF:
            raise UserError(
                "judge self: GenEval 2 is judged by the probabilities of tokens; give endpoint, or "
                "the folder of an image-text model of transformers"
            )
        if named == ENDPOINT:
            client, name = endpoint_client(opening)
            return cls(opening.folder, EndpointProbabilities(client), name)
        checkpoint = open_checkpoint(named)
        system = ImageTextSystem(checkpoint, config.runtime.device, config.model.precision, {})
        return cls(opening.folder, ModelProbabilities(system), checkpoint.digest)

    def items(self) -> list[Item]:
        """All prompts, each with its atoms."""
        path = find_file(self._data, ["geneval2_data.jsonl"], "prompts with questions")
        return [
            _item(row, f"{number:05d}", f"{path}, object {number + 1}")
            for number, row in enumerate(read_json_lines(path))
        ]

    def grade(self, item: Item, pictures: Sequence[Image.Image]) -> list[Verdict]:
        atoms = json.loads(item.answer)
        asked = [
            Asked(atom["question"] + CUE, spellings(atom["question"], atom["answer"]))
            for atom in atoms
        ]
        return [verdict(self._judge.masses(picture, asked)) for picture in pictures]

    @staticmethod
    def item_figures(rows: pd.DataFrame) -> list[Figure]:
        """AM and GM in percent; GM by number of atoms, AM by kind of atom, as is published."""
        atoms = [
            (json.loads(answer), json.loads(said))
            for answer, said in zip(rows["answer"], rows["prediction"], strict=True)
        ]
        scored = rows.assign(
            am=[np.mean(_known(said["low"])) for _, said in atoms],
            gm=[geometric_mean(_known(said["low"])) for _, said in atoms],
            most=[geometric_mean(_known(said["high"])) for _, said in atoms],
        )
        columns = {"soft_tifa_gm": "gm", "soft_tifa_am": "am", "soft_tifa_gm_at_most": "most"}
        by_count = {name: strata(scored, [column]) for name, column in columns.items()}
        figures = [
            Figure(name, ALL, [np.concatenate(list(parts.values()))], mean_of(0, 100))
            for name, parts in by_count.items()
        ]
        for count, part in by_count["soft_tifa_gm"].items():
            figures.append(Figure("soft_tifa_gm", count, [part], mean_of(0, 100)))
        for skill, part in strata(_by_skill(rows["unit"], atoms), ["score"]).items():
            figures.append(Figure("soft_tifa_am", skill, [part], mean_of(0, 100)))
        return figures


def _item(row: Mapping[str, Any], item_id: str, where: str) -> Item:
    prompt, count, asked, skills = wanted(
        dict(row), ("prompt", "atom_count", "vqa_list", "skills"), where
    )
    if not asked or len(asked) != len(skills) or any(len(pair) != 2 for pair in asked):
        raise UserError(
            f"{where}: vqa_list has {len(asked)} pairs of question and answer and skills has "
            f"{len(skills)} names; each question has one"
        )
    atoms = [
        {"question": question, "answer": answer, "skill": skill}
        for (question, answer), skill in zip(asked, skills, strict=True)
    ]
    for atom in atoms:
        if not spellings(atom["question"], atom["answer"]):
            raise UserError(
                f"{where}: the answer to {atom['question']!r} is {atom['answer']!r}; it is Yes, or "
                f"a number where a question begins with {COUNTING!r}"
            )
    return Item(item_id, f"{count} atoms", item_id, prompt, json.dumps(atoms))


def spellings(question: str, answer: str) -> tuple[str, ...]:
    """How a reply with the wanted answer may begin; nothing if the answer is of no known kind.

    A number is a word, with or without a capital, or its digits; each may follow a blank.
    """
    if not question.startswith(COUNTING):
        return YES if answer.lower() == "yes" else ()
    word = answer.strip()
    forms = [word, word.capitalize()]
    if word.lower() in DIGITS:
        forms.append(DIGITS[word.lower()])
    return tuple(dict.fromkeys(blank + form for blank in ("", " ") for form in forms)) * bool(word)


def verdict(masses: Sequence[Mass | None]) -> Verdict:
    """A picture by its atoms: the geometric mean of those that have an answer."""
    known = [one for one in masses if one is not None]
    said = {
        end: [None if one is None else getattr(one, end) for one in masses]
        for end in ("low", "high")
    }
    if not known:
        return Verdict(json.dumps(said), 0.0, NO_ANSWER)
    status = ANSWERED if len(known) == len(masses) else PARTLY
    return Verdict(json.dumps(said), geometric_mean([one.low for one in known]), status)


def geometric_mean(values: Sequence[float]) -> float:
    """The root of the product; 0 if any value is 0."""
    if min(values) <= 0:
        return 0.0
    return math.exp(sum(map(math.log, values)) / len(values))


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _by_skill(units: pd.Series[Any], atoms: Sequence[tuple[Any, Any]]) -> pd.DataFrame:
    """A row for each atom that has an answer, of the kind that it is."""
    return pd.DataFrame(
        [
            {"unit": unit, "group": atom["skill"], "score": float(low)}
            for unit, (asked, said) in zip(units, atoms, strict=True)
            for atom, low in zip(asked, said["low"], strict=True)
            if low is not None
        ]
    )


BENCHMARK = GenEval2
