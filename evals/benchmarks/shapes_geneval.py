"""GenEval's rules in the shapes world: the pixel oracle detects, on prompts of held-out scenes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
from PIL import Image

from data.shapes.language import Mention, Prompt, make_prompt
from data.shapes.oracle import read
from data.shapes.render import CELL
from data.shapes.scene import Object, Scene
from evals.benchmarks.base import Item, Opening, Verdict
from evals.benchmarks.drawing import Drawing
from evals.benchmarks.figures import Figure, category_figures
from evals.benchmarks.geneval_rules import grade, kept
from evals.benchmarks.shapes_pope import NUM_SCENES, SEED, held_out_records
from evals.networks.detector import Detection


class ShapesGenEval(Drawing):
    """A prompt for each of some held-out scenes, all categories in turn."""

    name = "shapes-geneval"

    def __init__(self, split: str, num_scenes: int = NUM_SCENES) -> None:
        super().__init__({})
        self._split, self._num = split, num_scenes

    @classmethod
    def open(cls, opening: Opening) -> Self:
        return cls(opening.split)

    def items(self) -> list[Item]:
        """All prompts."""
        items: list[Item] = []
        for record in held_out_records(self._num, self._split).values():
            rng = np.random.default_rng([SEED, len(items)])
            said = _without_sizes(make_prompt(record.category, record.scene, rng))
            metadata = json.dumps(metadata_of(said, record.category))
            item_id = record.record_id
            items.append(Item(item_id, record.category, item_id, str(said), metadata))
        return items

    def grade(self, item: Item, pictures: Sequence[Image.Image]) -> list[Verdict]:
        metadata = json.loads(item.answer)
        scenes = read(np.stack([np.asarray(picture) for picture in pictures]))
        return [_verdict(scene, metadata) for scene in scenes]

    @staticmethod
    def item_figures(rows: pd.DataFrame) -> list[Figure]:
        return category_figures(rows)


def metadata_of(said: Prompt, tag: str) -> dict[str, Any]:
    """A prompt as GenEval's metadata has it; with counts, more than asked for is too many."""
    # A relation is that of the first to the second, so the second comes first.
    mentions = said.mentions[::-1] if said.relation else said.mentions
    include: list[dict[str, Any]] = [
        {"class": m.shape, "count": m.count} | ({"color": m.color} if m.color else {})
        for m in mentions
    ]
    if said.relation:
        include[1]["position"] = [said.relation, 0]
    exclude = [{"class": m.shape, "count": m.count + 1} for m in mentions]
    return {"tag": tag, "include": include, "exclude": exclude if tag == "counting" else []}


def _without_sizes(said: Prompt) -> Prompt:
    """GenEval's metadata knows no sizes."""
    return Prompt(
        tuple(Mention(m.count, None, m.color, m.shape) for m in said.mentions), said.relation
    )


def _verdict(scene: Scene, metadata: Mapping[str, Any]) -> Verdict:
    seen = {_detection(item): item.color for item in scene.objects}
    found = kept(list(seen), metadata["tag"])
    problems = grade(found, metadata, lambda objects: [seen[one] for one in objects])
    return Verdict("; ".join(problems), float(not problems))


def _detection(item: Object) -> Detection:
    """The cell of an object; the oracle is sure."""
    left, top = item.column * CELL, item.row * CELL
    return Detection(item.shape, 1.0, (left, top, left + CELL, top + CELL))


BENCHMARK = ShapesGenEval
