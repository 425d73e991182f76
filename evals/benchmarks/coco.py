"""Zero-shot COCO: how near drawn pictures are to true ones (FID), and to captions (CLIP-Score).

Reads `captions_val2014.json` and `val2014/`. One caption of each picture is drawn once; drawn
pictures are compared with the same pictures of COCO, cut to the middle square in the size of the
drawn ones.

Shapes: R pictures, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

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
from evals.benchmarks.drawing import Drawing
from evals.benchmarks.figures import Figure, score_figures
from evals.benchmarks.files import ImageFolder, find_file, read_json, wanted
from evals.checkpoints import Checkpoint, open_checkpoint
from evals.networks.clip_similarity import ClipSimilarity
from evals.networks.features import FeatureNetwork
from evals.statistics import Bootstrap, Estimate, Values
from evals.systems.base import System

NUM_PICTURES = 30_000  # as is usual


class Coco(Drawing):
    """Pictures of val2014, those with the smallest hashes of their names."""

    name = "coco"
    num_pictures = 1

    def __init__(
        self,
        data: Path,
        clip: Checkpoint,
        inception: Path,
        num_pictures: int,
        device: str,
    ) -> None:
        super().__init__({"clip": clip.digest, "inception": sha256_of(inception)})
        self._data, self._num = data, num_pictures
        self._images = ImageFolder([data / "val2014", data / "images", data])
        self._clip = ClipSimilarity(clip.folder, device)
        self._network = FeatureNetwork(inception, device)

    @classmethod
    def open(cls, opening: Opening) -> Self:
        judges, device = opening.chosen.judges, opening.config.runtime.device
        inception, clip = Path(judges["inception"]), open_checkpoint(judges["clip"])
        if not inception.is_file():
            raise UserError(
                f"inception {inception}: no such file; give the TorchScript file of FID"
            )
        number = opening.chosen.limit or NUM_PICTURES
        return cls(opening.folder, clip, inception, number, device)

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

    def run(self, system: System, items: Sequence[Item]) -> Mapping[str, list[Row]]:
        """Rows of items, pictures and features; without its true picture nothing is drawn."""
        self._true: dict[str, Image.Image] = {}
        self._features: list[Row] = []
        lost: list[Row] = []
        for item in items:
            try:
                self._true[item.item_id] = self._images.open(item.image)
            except (OSError, PictureError) as error:
                lost.append(item_row(item, str(error), Verdict("", 0.0, NO_IMAGE)))
        there = [item for item in items if item.item_id in self._true]
        rows = super().run(system, there) if there else {ITEMS: []}
        return {**rows, ITEMS: [*rows[ITEMS], *lost], FEATURES: self._features}

    def grade(self, item: Item, pictures: Sequence[Image.Image]) -> list[Verdict]:
        (drawn,) = pictures
        square = ImageOps.fit(self._true[item.item_id], drawn.size)
        self._features.append(
            {
                "item_id": item.item_id,
                "true": self._network.features(square).tolist(),
                "drawn": self._network.features(drawn).tolist(),
            }
        )
        cosine = float((self._clip.images([drawn]) @ self._clip.texts([item.text]).T)[0, 0])
        return [Verdict("", max(0.0, 100 * cosine))]

    @staticmethod
    def item_figures(rows: pd.DataFrame) -> list[Figure]:
        """The mean of CLIP-Scores, 100 times a cosine and no less than 0."""
        return score_figures(rows, "clip_score")

    def figures(self, rows: pd.DataFrame) -> list[Estimable]:
        """FID, which needs features, beside them."""
        true_RD, drawn_RD = (
            np.stack(list(rows[kind])).astype(np.float64) for kind in ("true", "drawn")
        )
        if len(rows) < 2:
            raise UserError("FID needs two pictures at least; raise its limit")
        return [FrechetFigure("fid", "all", true_RD, drawn_RD), *self.item_figures(rows)]


def frechet_distance(a_RD: Values, b_RD: Values) -> float:
    """Fréchet distance of two sets of features (FID, Heusel et al. 2017, arXiv 1706.08500).

    That of the normal distributions with their means and covariances.
    """
    mean_distance = ((a_RD.mean(0) - b_RD.mean(0)) ** 2).sum()
    covariances = [np.atleast_2d(np.cov(rows_RD, rowvar=False)) for rows_RD in (a_RD, b_RD)]
    # The trace of the root of a product is the sum of the roots of its eigenvalues, which are real
    # and not negative but for rounding.
    eigenvalues = np.linalg.eigvals(covariances[0] @ covariances[1])
    root = np.sqrt(eigenvalues.astype(np.complex128)).real.sum()
    return float(mean_distance + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * root)


@dataclass(frozen=True)
class FrechetFigure:
    """The distance as a figure.

    It has no interval: resamples repeat pictures, which makes covariances smaller and the distance
    larger than that of any sample of its size.
    """

    name: str
    group: str
    true_RD: Values
    drawn_RD: Values

    def estimate(self, bootstrap: Bootstrap) -> Estimate:
        """Its value, which is also both ends of the interval."""
        value = frechet_distance(self.true_RD, self.drawn_RD)
        return Estimate(value, value, value, len(self.drawn_RD))


BENCHMARK = Coco
