"""Captions of Flickr30k (Young et al. 2014), Karpathy's test split, by CIDEr.

Reads `dataset_flickr30k.json` and the pictures it names, in `flickr30k-images/` or `images/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from evals.benchmarks.base import (
    ANSWERED,
    EMPTY,
    Item,
    Opening,
    Row,
    Verdict,
)
from evals.benchmarks.cider import WORDS, cider
from evals.benchmarks.figures import Figure, score_figures
from evals.benchmarks.files import ImageFolder, find_file, read_json, wanted
from evals.benchmarks.reading import caption_items
from models.protocol import UnifiedModel


class Flickr30k:
    """A greedy caption of each picture against its five."""

    name = "flickr30k"

    def __init__(self, data: Path, max_new_tokens: int) -> None:
        self._data, self._max_new_tokens = data, max_new_tokens
        self._images = ImageFolder([data / "flickr30k-images", data / "images", data])

    @property
    def settings(self) -> Mapping[str, object]:
        """How long a caption may be, and what cuts it into words."""
        return {"max_new_tokens": self._max_new_tokens, "words": WORDS}

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

    def run(self, model: UnifiedModel, items: Sequence[Item]) -> Mapping[str, list[Row]]:
        """Rows of the items, captioned; their scores wait for all others."""
        return caption_items(
            model, items, lambda item: self._images.open(item.image), self.judge,
            self._max_new_tokens,
        )  # fmt: skip

    def judge(self, item: Item, reply: str) -> Verdict:
        """A caption by itself has no score, since weights of words come from all pictures."""
        return Verdict(reply, 0.0, ANSWERED if reply.strip() else EMPTY)

    def figures(self, rows: pd.DataFrame) -> list[Figure]:
        """CIDEr in percent, as is published; words are weighed as in the whole set."""
        return cider_figures(rows)


def cider_figures(rows: pd.DataFrame) -> list[Figure]:
    """As Flickr30k's, of scored items."""
    references = [json.loads(answer) for answer in rows["answer"]]
    scores = cider(list(rows["reply"]), references)
    return score_figures(rows.assign(score=scores), "cider", 100)


def open_benchmark(opening: Opening) -> Flickr30k:
    """The benchmark over its published files."""
    return Flickr30k(opening.folder, opening.config.sampling.captions.max_new_tokens)


def item_figures(rows: pd.DataFrame) -> Sequence[Figure]:
    """Figures of scored items alone."""
    return cider_figures(rows)
