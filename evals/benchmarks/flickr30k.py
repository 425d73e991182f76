"""Captions of Flickr30k (Young et al. 2014), Karpathy's test split, by CIDEr.

Reads `dataset_flickr30k.json` and the pictures it names, in `flickr30k-images/` or `images/`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pandas as pd
from PIL import Image

from evals.benchmarks.base import ANSWERED, EMPTY, Item, Opening, Verdict
from evals.benchmarks.cider import WORDS, cider
from evals.benchmarks.figures import Figure, score_figures
from evals.benchmarks.files import find_file, read_json, wanted
from evals.benchmarks.reading import Reading
from evals.systems.base import System
from services.replies import NoAnswer


class Flickr30k(Reading):
    """A greedy caption of each picture against its five."""

    name = "flickr30k"
    folders = ("flickr30k-images", "images", ".")

    def __init__(self, data: Path, max_new_tokens: int) -> None:
        super().__init__(data)
        self._max_new_tokens = max_new_tokens
        self.settings = {"max_new_tokens": max_new_tokens, "words": WORDS}

    @classmethod
    def open(cls, opening: Opening) -> Self:
        return cls(opening.folder, opening.config.sampling.captions.max_new_tokens)

    def items(self) -> list[Item]:
        """The pictures of the test split."""
        path = find_file(self._data, ["dataset_flickr30k.json"], "Karpathy's splits")
        (images,) = wanted(read_json(path), ("images",), str(path))
        items = []
        for number, row in enumerate(images):
            where = f"{path}, picture {number}"
            split, name, sentences = wanted(row, ("split", "filename", "sentences"), where)
            if split == "test":
                told = json.dumps([sentence["raw"] for sentence in sentences])
                items.append(Item(name, "", name, "", told, name))
        return items

    def replies(
        self, system: System, pictures: Sequence[Image.Image], asked: Sequence[Sequence[Item]]
    ) -> Sequence[Sequence[str | NoAnswer]]:
        """A greedy caption of each picture; their scores wait for all others."""
        told = system.caption(pictures, self._max_new_tokens)
        return [[caption] * len(same) for same, caption in zip(asked, told, strict=True)]

    def judge(self, item: Item, reply: str) -> Verdict:
        """A caption by itself has no score, since weights of words come from all pictures."""
        return Verdict(reply, 0.0, ANSWERED if reply.strip() else EMPTY)

    @staticmethod
    def item_figures(rows: pd.DataFrame) -> list[Figure]:
        """CIDEr in percent, as is published; words are weighed as in the whole set."""
        references = [json.loads(answer) for answer in rows["answer"]]
        scores = cider(list(rows["reply"]), references)
        return score_figures(rows.assign(score=scores), "cider", 100)


BENCHMARK = Flickr30k
