"""Having a model draw prompts, so that its pictures can be judged.

Shapes: B prompts, M pictures a prompt, N image tokens.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence

from PIL import Image

from core.runtime import derive_seed
from data.tables import encode_image, image_row
from evals.benchmarks.base import IMAGES, ITEMS, Benchmark, Item, Row, Verdict, item_row
from models.protocol import ImageSampling, UnifiedModel, sampling_settings


class Drawing(Benchmark):
    """Prompts to draw; `judges` in the settings are what scores the pictures.

    `num_pictures` of a prompt are as GenEval and DPG-Bench have it.
    """

    num_pictures = 4

    def __init__(self, sampling: ImageSampling, judges: Mapping[str, object]) -> None:
        self._sampling = sampling
        drawn = {"pictures": self.num_pictures, **sampling_settings(sampling)}
        self.settings = {**drawn, **judges}

    @abstractmethod
    def grade(self, item: Item, pictures: Sequence[Image.Image]) -> list[Verdict]:
        """The verdict on each picture of a prompt."""

    def run(self, model: UnifiedModel, items: Sequence[Item]) -> Mapping[str, list[Row]]:
        """Rows of items and pictures; noise depends on the item alone."""
        num = self.num_pictures
        seeds = [derive_seed("benchmark", item.item_id) for item in items]
        drawn_BM = model.generate([item.text for item in items], num, self._sampling, seeds)
        pictures = model.decode(drawn_BM.reshape(-1, *model.drawn_shape))
        uses = model.text_uses([item.text for item in items], "prompt")
        described = json.dumps(sampling_settings(self._sampling))
        rows: dict[str, list[Row]] = {ITEMS: [], IMAGES: []}
        for index, (item, seed) in enumerate(zip(items, seeds, strict=True)):
            own = pictures[index * num : (index + 1) * num]
            verdicts = self.grade(item, own)
            for sample, (picture, verdict) in enumerate(zip(own, verdicts, strict=True)):
                rows[ITEMS].append(item_row(item, "", verdict, sample, cut=uses[index].cut))
                drawn = drawn_BM[index, sample]
                encoded = encode_image(picture)
                row = image_row(item.item_id, sample, encoded, drawn, described, seed)
                rows[IMAGES].append(row)
        return rows
