"""Zero-shot COCO: how near drawn pictures are to true ones (FID), and to captions (CLIP-Score).

Reads `captions_val2014.json` and `val2014/`. One caption of each picture is drawn once; drawn
pictures are compared with the same pictures of COCO, cut to the middle square in the size of the
drawn ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from core.errors import UserError
from core.files import sha256_of
from data.pictures import PictureError
from evals.benchmarks.base import (
    FEATURES,
    ITEMS,
    NO_IMAGE,
    Estimable,
    Item,
    Opening,
    Row,
    Verdict,
    item_row,
)
from evals.benchmarks.drawing import draw_items, drawing_settings
from evals.benchmarks.figures import Figure, score_figures
from evals.benchmarks.files import ImageFolder, find_file, read_json, wanted
from evals.benchmarks.frechet import FrechetFigure
from evals.checkpoints import Checkpoint, open_checkpoint
from evals.networks.clip_similarity import ClipSimilarity
from evals.networks.features import FeatureNetwork
from models.protocol import ImageSampling, UnifiedModel

NUM_PICTURES = 30_000  # as is usual


class Coco:
    """Pictures of val2014, those with the smallest hashes of their names."""

    name = "coco"

    def __init__(
        self,
        data: Path,
        sampling: ImageSampling,
        clip: Checkpoint,
        inception: Path,
        num_pictures: int,
        device: str,
    ) -> None:
        self._data, self._sampling, self._num = data, sampling, num_pictures
        self._images = ImageFolder([data / "val2014", data / "images", data])
        self._digests = {"clip": clip.digest, "inception": sha256_of(inception)}
        self._clip = ClipSimilarity(clip.folder, device)
        self._network = FeatureNetwork(inception, device)

    @property
    def settings(self) -> Mapping[str, object]:
        """Sampling and networks."""
        return {**drawing_settings(self._sampling), "pictures": 1, **self._digests}

    def items(self) -> list[Item]:
        """A caption for each picture; UserError if there are fewer than are wanted."""
        path = find_file(self._data, ["captions_val2014.json"], "captions")
        images, annotations = wanted(read_json(path), ("images", "annotations"), str(path))
        captions: dict[int, str] = {}
        for row in sorted(annotations, key=lambda row: int(row["id"])):
            captions.setdefault(row["image_id"], row["caption"].strip())
        named = {row["file_name"]: captions[row["id"]] for row in images if row["id"] in captions}
        if len(named) < self._num:
            raise UserError(
                f"limit {self._num}: {path} has {len(named)} pictures with captions; give no more"
            )
        chosen = sorted(named, key=lambda name: sha256(name.encode()).hexdigest())[: self._num]
        return [Item(name, "", name, named[name], "", name) for name in sorted(chosen)]

    def run(self, model: UnifiedModel, items: Sequence[Item]) -> Mapping[str, list[Row]]:
        """Rows of items, pictures and features; without its true picture nothing is drawn."""
        true: dict[str, Image.Image] = {}
        lost: list[Row] = []
        for item in items:
            try:
                true[item.item_id] = self._images.open(item.image)
            except (OSError, PictureError) as error:
                lost.append(item_row(item, str(error), Verdict("", 0.0, NO_IMAGE)))
        features: list[Row] = []

        def grade(item: Item, pictures: Sequence[Image.Image]) -> list[Verdict]:
            (drawn,) = pictures
            square = ImageOps.fit(true[item.item_id], drawn.size)
            features.append(
                {
                    "item_id": item.item_id,
                    "true": self._network.features(square).tolist(),
                    "drawn": self._network.features(drawn).tolist(),
                }
            )
            cosine = float((self._clip.images([drawn]) @ self._clip.texts([item.text]).T)[0, 0])
            return [Verdict("", max(0.0, 100 * cosine))]

        there = [item for item in items if item.item_id in true]
        rows = draw_items(model, there, self._sampling, grade, 1) if there else {ITEMS: []}
        return {**rows, ITEMS: [*rows[ITEMS], *lost], FEATURES: features}

    def figures(self, rows: pd.DataFrame) -> list[Estimable]:
        """FID, and the mean of CLIP-Scores, 100 times a cosine and no less than 0."""
        true_RD, drawn_RD = (
            np.stack(list(rows[kind])).astype(np.float64) for kind in ("true", "drawn")
        )
        if len(rows) < 2:
            raise UserError("FID needs two pictures at least; raise its limit")
        return [
            FrechetFigure("fid", "all", true_RD, drawn_RD),
            *score_figures(rows, "clip_score"),
        ]


def open_benchmark(opening: Opening) -> Coco:
    """The benchmark with its two networks."""
    judges, device = opening.chosen.judges, opening.config.runtime.device
    inception, clip = Path(judges["inception"]), open_checkpoint(judges["clip"])
    if not inception.is_file():
        raise UserError(f"inception {inception}: no such file; give the TorchScript file of FID")
    number = opening.chosen.limit or NUM_PICTURES
    return Coco(opening.folder, opening.sampling, clip, inception, number, device)


def item_figures(rows: pd.DataFrame) -> Sequence[Figure]:
    """Figures of scored items alone; FID needs features beside them."""
    return score_figures(rows, "clip_score", 1.0)
