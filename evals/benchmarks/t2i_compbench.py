"""T2I-CompBench++ (Huang et al. 2023, arXiv 2307.06350): are attributes those of the right things?

Reads the prompts of attribute binding (`color_val.txt`, `shape_val.txt`, `texture_val.txt`), and
`noun_phrases.json`, an object from each prompt to its noun phrases. A picture is worth the product
of the probabilities of yes, against no, over the questions whether each phrase is there (BLIP-VQA's
rule). The other categories are scored by detectors, CLIP or several judges together, and are not
here.

The official script finds phrases with spaCy's parser, which this project does not have, and nothing
here guesses at them: the file holds what a parser has found, as it was found. With `noun_chunks` of
spaCy's en_core_web_sm phrases are the official ones. Of them are taken the first eight, without
those that the official script leaves out.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pandas as pd
from PIL import Image

from core.benchmarks import ENDPOINT
from core.errors import UserError
from core.runtime import derive_seed
from evals.benchmarks.base import NO_ANSWER, Item, Opening, Verdict
from evals.benchmarks.drawing import Drawing
from evals.benchmarks.figures import ALL, Figure, mean_of, mean_of_strata, strata
from evals.benchmarks.files import find_file, read_json, read_text
from evals.benchmarks.judging import endpoint_client
from services.endpoint import Client, data_url
from services.replies import LEAST_MASS, NoAnswer, bare

CATEGORIES = ("color", "shape", "texture")
PHRASES = "noun_phrases.json"
LEFT_OUT = ("top", "the side", "the left", "the right")
MOST_PHRASES = 8
CUE = " Answer yes or no."
SHOWN = 3  # prompts in a message
logger = logging.getLogger(__name__)


class T2ICompBench(Drawing):
    """All prompts of the three categories, ten pictures each."""

    name = "t2i_compbench"
    num_pictures = 10

    def __init__(self, data: Path, client: Client, judge: str) -> None:
        super().__init__({"judge": judge, "cue": CUE})
        self._data, self._client = data, client

    @classmethod
    def open(cls, opening: Opening) -> Self:
        named = opening.chosen.judges["judge"]
        if named != ENDPOINT:
            raise UserError(
                f"judge {named}: T2I-CompBench is judged by a model of a server; give endpoint"
            )
        client, name = endpoint_client(opening)
        return cls(opening.folder, client, name)

    def items(self) -> list[Item]:
        """All prompts by category, each with the phrases that are asked about."""
        phrases = _phrases_of(self._data)
        items = []
        for category in CATEGORIES:
            path = find_file(self._data, [f"{category}_val.txt"], f"prompts of {category}")
            lines = (line.split("\t")[0].strip() for line in read_text(path).splitlines())
            for number, prompt in enumerate(filter(None, lines)):
                if prompt not in phrases:
                    raise UserError(
                        f"{self._data}: {PHRASES} has no noun phrases of {prompt!r}, a prompt of "
                        f"{path.name}; make it from these very files"
                    )
                item_id = f"{category}_{number:03d}"
                asked = json.dumps(asked_about(phrases[prompt]))
                items.append(Item(item_id, category, item_id, prompt, asked))
        if bare_prompts := [item.text for item in items if item.answer == "[]"]:
            logger.warning(
                "%d of %d prompts have no noun phrase to ask about, and will not be scored, such "
                "as %s",
                len(bare_prompts), len(items), ", ".join(map(repr, bare_prompts[:SHOWN])),
            )  # fmt: skip
        return items

    def grade(self, item: Item, pictures: Sequence[Image.Image]) -> list[Verdict]:
        phrases = json.loads(item.answer)
        asked = [(data_url(picture), phrase) for picture in pictures for phrase in phrases]
        said = iter(list(self._client.map(self._yes, asked)))
        return [verdict([next(said) for _ in phrases]) for _ in pictures]

    def _yes(self, asked: tuple[str, str]) -> float | None:
        url, phrase = asked
        seed = derive_seed("t2i_compbench", phrase)
        top = self._client.first_tokens(f"{phrase}?{CUE}", seed=seed, picture=url)
        return None if isinstance(top, NoAnswer) else probability_of_yes(top)

    @staticmethod
    def item_figures(rows: pd.DataFrame) -> list[Figure]:
        """The mean of each category, as is published, and the mean of the three."""
        by_category = strata(rows, ["score"])
        if missing := [name for name in CATEGORIES if name not in by_category]:
            logger.warning(
                "no picture of %s was scored; the mean is that of the other categories",
                ", ".join(missing),
            )
        parts = list(by_category.values())
        figures = [Figure("vqa", ALL, parts, mean_of_strata(mean_of()))]
        return figures + [
            Figure("vqa", name, [part], mean_of()) for name, part in by_category.items()
        ]


def asked_about(phrases: Sequence[str]) -> list[str]:
    """The phrases that the official script asks about."""
    return [phrase for phrase in phrases if phrase not in LEFT_OUT][:MOST_PHRASES]


def probability_of_yes(top: Sequence[tuple[str, float]]) -> float | None:
    """That of yes against no, in all spellings, from the most probable first tokens.

    None if the model says something else more often than not. Of two words the one that is not
    listed counts as 0.
    """
    yes, no = (sum(p for token, p in top if bare(token) == word) for word in ("yes", "no"))
    return None if yes + no < LEAST_MASS else yes / (yes + no)


def verdict(probabilities: Sequence[float | None]) -> Verdict:
    """A picture by the product over its phrases.

    No score if one of them has no answer: what is left out of a product counts as a sure yes.
    """
    said = json.dumps(probabilities)
    known = [one for one in probabilities if one is not None]
    if not known or len(known) < len(probabilities):
        return Verdict(said, 0.0, NO_ANSWER)
    return Verdict(said, math.prod(known))


def _phrases_of(folder: Path) -> dict[str, list[str]]:
    """The noun phrases of each prompt; UserError where a file has no such thing."""
    try:
        path = find_file(folder, [PHRASES], "noun phrases of the prompts")
    except UserError as error:
        raise UserError(
            f"{error}; {PHRASES} is no published file: make it from the prompts with a parser, as "
            "docs/how-to/benchmarks.md shows"
        ) from None
    document: Any = read_json(path)
    if not isinstance(document, dict):
        raise UserError(f"{path} is no JSON object from prompts to lists of noun phrases")
    for prompt, phrases in document.items():
        if not isinstance(phrases, list) or not all(
            isinstance(one, str) and one.strip() for one in phrases
        ):
            raise UserError(f"{path}: the noun phrases of {prompt!r} are {phrases!r}, no texts")
    return {prompt.strip(): phrases for prompt, phrases in document.items()}


BENCHMARK = T2ICompBench
