"""MMMU (Yue et al. 2024, arXiv 2311.16502), validation: questions of 30 subjects.

Reads the Parquet files of the published data set, `SUBJECT/validation-*.parquet`, pictures inside.
The model sees one picture; of several it sees the first that the question names.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from PIL import Image

from core.errors import UserError
from core.names import visible
from core.runtime import derive_seed
from data.pictures import rgb
from evals.benchmarks.base import ANSWERED, EMPTY, UNCLEAR, Item, Verdict
from evals.benchmarks.figures import Figure, mean_of, score_figures, strata
from evals.benchmarks.files import wanted
from evals.benchmarks.mmmu_parsing import (
    RULE,
    letters,
    listed,
    open_answer_is_right,
    parse_choice,
    parse_open,
)
from evals.benchmarks.reading import Reading

LETTER = "Answer with the option's letter from the given choices directly."
PHRASE = "Answer the question using a single word or phrase."
CHOICE = "multiple-choice"
FIELDS = ("id", "question", "options", "answer", "question_type")
# As the published data set sorts its subjects.
_DISCIPLINES = {
    subject: f"discipline/{discipline}"
    for discipline, subjects in {
        "Art & Design": "Art Art_Theory Design Music",
        "Business": "Accounting Economics Finance Manage Marketing",
        "Science": "Biology Chemistry Geography Math Physics",
        "Health & Medicine": "Basic_Medical_Science Clinical_Medicine "
        "Diagnostics_and_Laboratory_Medicine Pharmacy Public_Health",
        "Humanities & Social Science": "History Literature Sociology Psychology",
        "Tech & Engineering": "Agriculture Architecture_and_Engineering Computer_Science "
        "Electronics Energy_and_Power Materials Mechanical_Engineering",
    }.items()
    for subject in subjects.split()
}
_NAMED = re.compile(r"<image (\d)>")


class Mmmu(Reading):
    """All questions of the validation split, by subject."""

    name = "mmmu"
    settings: Mapping[str, object] = {
        "cue": [LETTER, PHRASE],
        "pictures": "first named",
        "replies": RULE,
    }

    def items(self) -> list[Item]:
        """All questions, by file and row."""
        return [item for name in self._files for item in self._file_items(name)]

    @cached_property
    def _files(self) -> dict[str, Path]:
        found = sorted(visible(self._data, "validation-*.parquet"))
        if not found:
            raise UserError(
                f"folder {self._data} has no validation-*.parquet; give the folder of MMMU/MMMU, "
                "which has one for each subject"
            )
        return {path.relative_to(self._data).as_posix(): path for path in found}

    def _file_items(self, name: str) -> list[Item]:
        path = self._files[name]
        known = pq.read_schema(path).names
        wanted(dict.fromkeys(known), FIELDS, str(path))
        table = pq.read_table(path, columns=list(FIELDS))
        return [_item(row, name, number) for number, row in enumerate(table.to_pylist())]

    def picture(self, item: Item) -> Image.Image:
        name, number, image = item.image.split("#")
        column = f"image_{image}"
        value = self._column(name, column)[int(number)].as_py()
        if value is None or not value["bytes"]:
            raise FileNotFoundError(f"{name} has no {column} in row {number}")
        return rgb(value["bytes"])

    @lru_cache(maxsize=1)  # noqa: B019, since it keeps but the last, as items come by file
    def _column(self, name: str, column: str) -> Any:
        """One column of pictures."""
        return pq.read_table(self._files[name], columns=[column]).column(column)

    def judge(self, item: Item, reply: str) -> Verdict:
        """By the published parsing; a choice that cannot be told is drawn, as there."""
        asked = json.loads(item.answer)
        status = ANSWERED if reply.strip() else EMPTY
        if asked["type"] != CHOICE:
            said = parse_open(reply)
            right = open_answer_is_right(said, asked["answer"])
            return Verdict(json.dumps(said), float(right), status)
        choice = parse_choice(reply, asked["options"])
        if choice is None:
            status = UNCLEAR if status == ANSWERED else status
            options = letters(asked["options"])
            rng = np.random.default_rng(derive_seed("mmmu", item.item_id))
            choice = options[int(rng.integers(len(options)))]
        return Verdict(choice, float(choice in listed(asked["answer"])), status)

    @staticmethod
    def item_figures(rows: pd.DataFrame) -> list[Figure]:
        return score_figures(rows, "accuracy", 100)

    def figures(self, rows: pd.DataFrame) -> list[Figure]:
        """Accuracy in percent: over all, by subject, discipline and number of pictures."""
        several = rows["answer"].map(lambda answer: json.loads(answer)["pictures"] > 1)
        kinds = (
            rows["group"].map(_DISCIPLINES).fillna("discipline/unknown"),
            several.map({True: "several pictures", False: "one picture"}),
        )
        return self.item_figures(rows) + [
            Figure("accuracy", group, [part], mean_of(0, 100))
            for kind in kinds
            for group, part in strata(rows.assign(group=kind), ["score"]).items()
        ]


def _item(row: Mapping[str, Any], name: str, number: int) -> Item:
    options = [str(option) for option in ast.literal_eval(row["options"])]
    lines = [row["question"]]
    if row["question_type"] == CHOICE:
        lettered = zip(letters(options), options, strict=True)
        lines += [f"{letter}. {option}" for letter, option in lettered] + ["", LETTER]
    else:
        lines += ["", PHRASE]
    text = "\n".join(lines)
    named = list(dict.fromkeys(_NAMED.findall(text))) or ["1"]
    answer = {
        "type": row["question_type"],
        "answer": row["answer"],
        "options": options,
        "pictures": len(named),
    }
    subject = re.sub(r"^[^_]+_(.+)_\d+$", r"\1", row["id"])
    image = f"{name}#{number}#{named[0]}"
    return Item(row["id"], subject, row["id"], text, json.dumps(answer), image)


BENCHMARK = Mmmu
