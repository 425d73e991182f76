"""Having a model draw prompts, so that its pictures can be judged.

Shapes: B prompts, M pictures a prompt, N image tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from PIL import Image

from core.runtime import derive_seed
from data.tables import encode_image
from evals.benchmarks.base import IMAGES, ITEMS, Item, Row, Verdict, item_row
from models.protocol import ImageSampling, UnifiedModel, sampling_settings

PICTURES = 4
"""A prompt, as GenEval and DPG-Bench have it."""
Grade = Callable[[Item, Sequence[Image.Image]], Sequence[Verdict]]


def draw_items(
    model: UnifiedModel,
    items: Sequence[Item],
    sampling: ImageSampling,
    grade: Grade,
    num_pictures: int = PICTURES,
) -> Mapping[str, list[Row]]:
    """Rows of items and pictures; noise depends on the item alone."""
    seeds = [derive_seed("benchmark", item.item_id) for item in items]
    drawn_BM = model.generate([item.text for item in items], num_pictures, sampling, seeds)
    pictures = model.decode(drawn_BM.reshape(-1, *model.drawn_shape))
    uses = model.text_uses([item.text for item in items], "prompt")
    described = json.dumps(sampling_settings(sampling))
    rows: dict[str, list[Row]] = {ITEMS: [], IMAGES: []}
    for index, (item, seed) in enumerate(zip(items, seeds, strict=True)):
        own = pictures[index * num_pictures : (index + 1) * num_pictures]
        for sample, (picture, verdict) in enumerate(zip(own, grade(item, own), strict=True)):
            rows[ITEMS].append(item_row(item, "", verdict, sample, cut=uses[index].cut))
            rows[IMAGES].append(
                {
                    "record_id": item.item_id,
                    "sample": sample,
                    "image": encode_image(picture),
                    "tokens": drawn_BM[index, sample].ravel().tolist(),
                    "sampler": described,
                    "seed": seed,
                }
            )
    return rows


def drawing_settings(sampling: ImageSampling) -> dict[str, object]:
    """What decides about the pictures."""
    return {"pictures": PICTURES, **sampling_settings(sampling)}
