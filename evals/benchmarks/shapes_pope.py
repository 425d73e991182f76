"""The shapes world's counterparts of POPE and GenEval, on held-out scenes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Self

import numpy as np
import pandas as pd
from PIL import Image

from data.shapes.records import Record, make_records
from data.shapes.scene import COLORS, SHAPES, Scene
from evals.benchmarks.base import Item, Opening, Verdict
from evals.benchmarks.figures import Figure
from evals.benchmarks.pope import SPLITS, clarity, yes_no_figures, yes_or_no
from evals.benchmarks.reading import Reading

NUM_SCENES = 240
SEED = 0
Thing = tuple[str, str]
THINGS: tuple[Thing, ...] = tuple((color, shape) for color in COLORS for shape in SHAPES)


class ShapesPope(Reading):
    """For every thing that is there, one that is not: any, a frequent one, a frequent companion."""

    name = "shapes-pope"
    choices = ("yes", "no")

    def __init__(self, split: str, num_scenes: int = NUM_SCENES) -> None:
        self._split, self._num = split, num_scenes

    @classmethod
    def open(cls, opening: Opening) -> Self:
        return cls(opening.split)

    @property
    def _records(self) -> Mapping[str, Record]:
        return held_out_records(self._num, self._split)

    def items(self) -> list[Item]:
        """All questions, by split and scene."""
        scenes = {name: record.scene for name, record in self._records.items()}
        items = []
        for split in SPLITS:
            rng = np.random.default_rng([SEED, SPLITS.index(split)])
            for name, scene in scenes.items():
                there = _things(scene)
                absent = absent_things(scene, split, list(scenes.values()), rng)[: len(there)]
                asked = [(t, "yes") for t in there] + [(t, "no") for t in absent]
                for (color, shape), answer in asked:
                    item_id = f"{split}/{name}/{color} {shape}"
                    question = f"is there a {color} {shape}?"
                    items.append(Item(item_id, split, name, question, answer, name))
        return items

    def picture(self, item: Item) -> Image.Image:
        return Image.fromarray(self._records[item.image].image())

    def judge(self, item: Item, reply: str) -> Verdict:
        """As POPE does."""
        said = yes_or_no(reply)
        return Verdict(said, float(said == item.answer), clarity(reply))

    @staticmethod
    def item_figures(rows: pd.DataFrame) -> list[Figure]:
        return yes_no_figures(rows)


@lru_cache(maxsize=4)
def held_out_records(num: int, split: str) -> Mapping[str, Record]:
    """Records by id; drawing scenes until enough are of a split takes seconds."""
    records = make_records(num, split, SEED)  # type: ignore[arg-type]
    return {record.record_id: record for record in records}


def absent_things(
    scene: Scene, split: str, scenes: Sequence[Scene], rng: np.random.Generator
) -> list[Thing]:
    """Things that a scene does not show, those that the split asks for first."""
    there = set(_things(scene))
    absent = [thing for thing in THINGS if thing not in there]
    shuffled = [absent[int(i)] for i in rng.permutation(len(absent))]
    if split == "random":
        return shuffled
    shown = [set(_things(other)) for other in scenes]
    if split == "adversarial":
        shown = [things for things in shown if things & there]
    counts = Counter(thing for things in shown for thing in things)
    return sorted(shuffled, key=lambda thing: -counts[thing])


def _things(scene: Scene) -> list[Thing]:
    """Different things in reading order."""
    return list(dict.fromkeys((item.color, item.shape) for item in scene.objects))


BENCHMARK = ShapesPope
