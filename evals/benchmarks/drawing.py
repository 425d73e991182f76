"""Having a system draw prompts, so that its pictures can be judged."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence

from PIL import Image

from core.runtime import derive_seed
from data.tables import encode_image, image_row
from evals.benchmarks.base import IMAGES, ITEMS, NOT_DRAWN, Benchmark, Item, Row, Verdict, item_row
from evals.systems.base import NoPicture, Picture, Prompt, System


class Drawing(Benchmark):
    """Prompts to draw; `judges` in the settings are what scores the pictures.

    `num_pictures` of a prompt are as GenEval and DPG-Bench have it.
    """

    num_pictures = 4

    def __init__(self, judges: Mapping[str, object]) -> None:
        self.settings = {"pictures": self.num_pictures, **judges}

    @abstractmethod
    def grade(self, item: Item, pictures: Sequence[Image.Image]) -> list[Verdict]:
        """The verdict on each picture of a prompt."""

    def run(self, system: System, items: Sequence[Item]) -> Mapping[str, list[Row]]:
        """Rows of items and pictures; noise depends on the item alone.

        A picture that the system did not give makes a row that is in no figure and says why.
        """
        prompts = prompts_of(items)
        drawn = system.draw(prompts, self.num_pictures)
        cuts = system.cut([item.text for item in items])
        described = json.dumps(system.recipe.get("sampling", {}), sort_keys=True)
        rows: dict[str, list[Row]] = {ITEMS: [], IMAGES: []}
        for item, prompt, own, cut in zip(items, prompts, drawn, cuts, strict=True):
            there = [(n, one) for n, one in enumerate(own) if isinstance(one, Picture)]
            lost = [(n, one) for n, one in enumerate(own) if isinstance(one, NoPicture)]
            verdicts = self.grade(item, [one.image for _, one in there]) if there else []
            scored = {
                sample: item_row(item, "", verdict, sample, cut=cut)
                for (sample, _), verdict in zip(there, verdicts, strict=True)
            }
            unscored = {
                sample: item_row(item, one.reason, Verdict("", 0.0, NOT_DRAWN), sample, cut=cut)
                for sample, one in lost
            }
            rows[ITEMS] += [row for _, row in sorted((scored | unscored).items())]
            rows[IMAGES] += [
                image_row(
                    item.item_id, sample, encode_image(one.image), one.codes, described, prompt.seed
                )
                for sample, one in there
            ]
        return rows


def prompts_of(items: Sequence[Item]) -> list[Prompt]:
    """What is to be drawn for items, with the seeds of their noise."""
    return [
        Prompt(item.item_id, item.text, derive_seed("benchmark", item.item_id)) for item in items
    ]
