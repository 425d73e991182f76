"""WISE_Verified (Niu et al. 2025, arXiv 2503.07265): does a picture show what one has to know?

Reads the three files `*_verified.json`: 1,000 prompts of six fields, told apart by their ids, each
with an explanation of what its picture should show. A judge gives 0 or 1; the published one is
Qwen3.5-35B-A3B. What the judge is told is worded here after the documented rule, so figures are
WISE's own only as far as the wording makes no difference.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from PIL import Image
from pydantic import BaseModel

from core.benchmarks import ENDPOINT
from core.errors import UserError
from core.runtime import derive_seed
from evals.benchmarks.base import NO_ANSWER, Item, Opening, Verdict
from evals.benchmarks.drawing import Drawing
from evals.benchmarks.figures import ALL, Figure, Statistic, mean_of, strata
from evals.benchmarks.files import find_file, read_json, wanted
from evals.benchmarks.judging import endpoint_client
from evals.statistics import Values
from services.endpoint import Client, data_url, user_message
from services.replies import NoAnswer

FILES = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
# The last id of each field, and its weight in the score.
FIELDS = {
    "culture": (400, 0.40), "time": (520, 0.12), "space": (640, 0.12),
    "biology": (760, 0.12), "physics": (880, 0.12), "chemistry": (1000, 0.12),
}  # fmt: skip
LAST = 1000
ASK = """\
A picture was made for a prompt that does not say outright what is to be seen; one has to know it.

Prompt: {prompt}
What the picture should show: {explanation}

Give a score of 1 if the picture is right by both: it shows what one has to know, with the
relations that matter, and it is realistic and clear enough to be judged. Give a score of 0 if it
misses the answer that knowledge gives, if a relation that matters is wrong, if it is unrealistic
or too unclear to tell, or if it is broken. If in doubt, give 0."""
logger = logging.getLogger(__name__)


class Score(BaseModel):
    """What the judge answers."""

    score: Literal[0, 1]


class Wise(Drawing):
    """All prompts, a picture each."""

    name = "wise"
    num_pictures = 1

    def __init__(self, data: Path, client: Client, judge: str) -> None:
        wording = sha256(ASK.encode()).hexdigest()
        super().__init__({"judge": judge, "wording": wording})
        self._data, self._client = data, client

    @classmethod
    def open(cls, opening: Opening) -> Self:
        named = opening.chosen.judges["judge"]
        if named != ENDPOINT:
            raise UserError(f"judge {named}: WISE is judged by a model of a server; give endpoint")
        client, name = endpoint_client(opening)
        return cls(opening.folder, client, name)

    def items(self) -> list[Item]:
        """All prompts by file."""
        items = []
        for name in FILES:
            path = find_file(self._data, [f"{name}_verified.json"], f"prompts of {name}")
            for number, row in enumerate(read_json(path), 1):
                fields = ("prompt_id", "Prompt", "Explanation")
                item_id, prompt, explanation = wanted(row, fields, f"{path}, object {number}")
                group = field_of(item_id, f"{path}, object {number}")
                unit = str(item_id)
                items.append(Item(unit, group, unit, prompt, explanation))
        return items

    def grade(self, item: Item, pictures: Sequence[Image.Image]) -> list[Verdict]:
        return [self._verdict(item, picture) for picture in pictures]

    def _verdict(self, item: Item, picture: Image.Image) -> Verdict:
        text = ASK.format(prompt=item.text, explanation=item.answer)
        message = user_message(text, data_url(picture))
        seed = derive_seed("wise", item.item_id)
        said = self._client.answer(message, Score, max_tokens=64, seed=seed)
        if isinstance(said, NoAnswer):
            return Verdict(said.reason, 0.0, NO_ANSWER)
        return Verdict(str(said.score), float(said.score))

    @staticmethod
    def item_figures(rows: pd.DataFrame) -> list[Figure]:
        """The weighted mean of the fields, and the share of right pictures of each."""
        by_field = strata(rows, ["score"])
        there = {name: by_field[name] for name in FIELDS if name in by_field}
        if missing := [name for name in FIELDS if name not in there]:
            logger.warning(
                "no prompt of %s was scored; the score is that of the other fields, whose weights "
                "are raised to 1 in all",
                ", ".join(missing),
            )
        weights = np.array([FIELDS[name][1] for name in there])
        figures = [Figure("wiscore", ALL, list(there.values()), _weighted(weights))]
        figures += [Figure("right", name, [part], mean_of()) for name, part in there.items()]
        return figures


def field_of(item_id: Any, where: str) -> str:
    """The field of a prompt, by its id."""
    if type(item_id) is not int or not 1 <= item_id <= LAST:
        raise UserError(f"{where}: prompt_id is {item_id!r}, no number from 1 to {LAST}")
    return next(name for name, (last, _) in FIELDS.items() if item_id <= last)


def _weighted(weights_F: Values) -> Statistic:
    """The mean of the means of fields, by their weights."""

    def statistic(sums: Sequence[Values]) -> Values:
        means_FS = np.stack([mean_of()([sums_SC]) for sums_SC in sums])
        return np.asarray(weights_F @ means_FS / weights_F.sum())

    return statistic


BENCHMARK = Wise
