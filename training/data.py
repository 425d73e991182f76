"""Homologous pairs in the form that models take them, and the order in which they are seen.

A group of samples is taken two at a time, so that it passes models as pairs do, whatever its size.

Where the likelihood of an image is an estimate, reference and training must take the same draws, so
their seeds are derived here and nowhere else.
Shapes: R pairs of an iteration, B pairs of a batch, X of a drawn picture, E epochs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from core.config import Training
from core.errors import UserError
from core.runtime import derive_seed
from models.protocol import (
    Drawn,
    Modality,
    PairBatch,
    RedrawBatch,
    Seen,
)

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

SCORES: dict[Modality, str] = {"caption": "caption_win_score", "image": "image_win_score"}
TEXT_COLUMNS = [
    *("record_id", "iteration", "prompt", "caption_win", "caption_lose"),
    *SCORES.values(),
]
IMAGES = ("image_win", "image_lose")
SIDES = ("chosen", "rejected")
PAIRS, GROUPS, POOL = "pairs", "groups", "pool"
POOL_COLUMNS = ["record_id", "image", "prompt", "caption"]
EXACT = 0
"""Draw seed of stored log-probabilities that are exact: captions, and images of some families."""


def draw_seed(seed: int, record_id: str, iteration: int, epoch: int) -> int:
    """Seed of the draws for the images of a pair in an epoch."""
    return derive_seed(seed, "masks", record_id, iteration, epoch)


def batches_of_epoch(
    num_pairs: int, batch_size: int, seed: int, iteration: int, epoch: int
) -> list[Ints]:
    """Rows of each step: a new order in every epoch, in batches of sizes as equal as can be.

    Equal, so that no step rests on a small remainder.
    """
    generator = np.random.default_rng(derive_seed(seed, "order", iteration, epoch))
    return np.array_split(generator.permutation(num_pairs), num_batches(num_pairs, batch_size))


def num_batches(num_pairs: int, batch_size: int) -> int:
    """Steps of an epoch."""
    return -(-num_pairs // batch_size)


@dataclass(frozen=True)
class Draws:
    """What is drawn for the images of pairs, in training and for the reference alike."""

    seed: int
    num_draws: int
    """Draws that an image's likelihood is estimated from; 0: exact."""
    prompt_dropout: float

    @classmethod
    def of(cls, seed: int, training: Training) -> "Draws":
        """By a run's seed and config."""
        return cls(seed, training.image_draws, training.prompt_dropout)

    def unprompted(self, record_id: str, iteration: int) -> bool:
        """Whether the images of a pair are scored without their prompt, in all epochs."""
        if self.prompt_dropout == 0:
            return False
        seed = derive_seed(self.seed, "prompt", record_id, iteration)
        return bool(np.random.default_rng(seed).random() < self.prompt_dropout)


@dataclass(frozen=True)
class Grouped:
    """What rows of groups have beside those of pairs: each is two samples of both modalities."""

    record_R: Ints
    """The record of each row, among pictures that are read."""
    samples: Mapping[Modality, Ints]
    """[R,2]: their numbers in the group."""
    advantages: Mapping[Modality, Floats]
    """[R,2]: how much better than their group they are."""
    shares: Mapping[Modality, Floats]
    """[R,2]: 0 for what is there to fill a row, else so that the mean of rows is that of groups."""
    likeness_R: Floats
    """Share of codes that the drawings of a record have in common with its picture; 1: not asked
    for."""

    @cached_property
    def weights(self) -> Floats:
        """[R] likeness of the record of each row, against that of the mean row."""
        return self.likeness_R / max(float(self.likeness_R.mean()), 1e-9)


@dataclass(frozen=True)
class Redraws:
    """Pictures of records, to be drawn by what is read of them."""

    seen: Seen
    drawn: Drawn


@dataclass(frozen=True)
class PairRows:
    """Pairs in the model's form: pictures of the records as read, winners and losers as drawn.

    Rows that are `grouped` have two samples of a group in place of winner and loser.
    """

    text: pa.Table
    seen: Seen
    win: Drawn
    lose: Drawn
    grouped: Grouped | None = None
    redraws: Redraws | None = None

    def __len__(self) -> int:
        return len(self.text)

    def sides(self, modality: Modality) -> npt.NDArray[np.str_]:
        """[R,2]: what stored log-probabilities call the two samples of a modality."""
        if self.grouped is None:
            return np.tile(np.array(SIDES), (len(self), 1))
        return self.grouped.samples[modality].astype(np.str_)

    @cached_property
    def win_scores(self) -> Mapping[Modality, Floats]:
        """How good the winners [R] are."""
        return {m: self.text[name].to_numpy().astype(np.float64) for m, name in SCORES.items()}

    def records(self, rows_B: Ints) -> Ints:
        """Where the pictures of these rows stand among those that are read."""
        return rows_B if self.grouped is None else self.grouped.record_R[rows_B]

    def batch(self, rows_B: Ints, epoch: int, draws: Draws) -> PairBatch:
        """Both modalities of these rows."""
        rows = self.text.take(rows_B)
        identity = _identity(rows)
        return PairBatch(
            seen=self.seen[self.records(rows_B)],
            captions_win=rows["caption_win"].to_pylist(),
            captions_lose=rows["caption_lose"].to_pylist(),
            prompts=rows["prompt"].to_pylist(),
            drawn_win=self.win[rows_B].astype(np.int64),
            drawn_lose=self.lose[rows_B].astype(np.int64),
            draw_seeds=[draw_seed(draws.seed, name, it, epoch) for name, it in identity],
            unprompted=[draws.unprompted(name, it) for name, it in identity],
            num_draws=draws.num_draws,
        )

    def redraw_batch(self, rows_B: Ints, epoch: int, draws: Draws) -> RedrawBatch:
        """The pictures of these rows."""
        assert self.redraws is not None  # whoever asks has had them encoded
        records_B, identity = self.records(rows_B), _identity(self.text.take(rows_B))
        return RedrawBatch(
            seen=self.redraws.seen[records_B],
            drawn=self.redraws.drawn[records_B].astype(np.int64),
            draw_seeds=[draw_seed(draws.seed, name, it, epoch) for name, it in identity],
            num_draws=draws.num_draws,
        )


def _identity(rows: pa.Table) -> list[tuple[str, int]]:
    """Record and iteration of each row."""
    columns = (rows[name].to_pylist() for name in ("record_id", "iteration"))
    return list(zip(*columns, strict=True))


@dataclass(frozen=True)
class ReferenceLogps:
    """Chosen and rejected log-probabilities of the reference; images by epoch unless exact."""

    caption_R2: Floats
    image_ER2: Floats

    def take(self, modality: Modality, epoch: int, rows_B: Ints) -> Floats:
        """[B,2] of these rows in this epoch."""
        if modality == "caption":
            return self.caption_R2[rows_B]
        of_epoch_R2: Floats = self.image_ER2[min(epoch, len(self.image_ER2) - 1)]
        return of_epoch_R2[rows_B]


def join_reference(stored: pa.Table, rows: PairRows, seed: int, epochs: int) -> ReferenceLogps:
    """The stored `ref_logps` of every row, joined by record and draw seed; 0 epochs: exact."""
    ids = rows.text["record_id"]
    keys = list(zip(ids.to_pylist(), rows.text["iteration"].to_pylist(), strict=True))

    def both(modality: Modality, seeds: pa.Array | None) -> Floats:
        sides = rows.sides(modality).T
        return np.stack([_lookup(stored, modality, side_R, ids, seeds) for side_R in sides], axis=1)

    images = []
    for epoch in range(max(1, epochs)):
        seeds = pa.array([draw_seed(seed, name, iteration, epoch) for name, iteration in keys])
        images.append(both("image", seeds if epochs else None))
    return ReferenceLogps(both("caption", None), np.stack(images))


def _lookup(
    stored: pa.Table,
    branch: str,
    side_R: npt.NDArray[np.str_],
    ids: pa.ChunkedArray,
    seeds: pa.Array | None,
) -> Floats:
    """[R] of one of the two samples of each row, whose names are `side_R`."""
    logps_R = np.empty(len(side_R))
    # A draw seed is unique to a record and an epoch.
    wanted, column = (ids, "record_id") if seeds is None else (seeds, "draw_seed")
    for side in np.unique(side_R):
        rows = np.flatnonzero(side_R == side)
        here = pc.and_(pc.equal(stored["branch"], branch), pc.equal(stored["side"], str(side)))
        part = stored.filter(here)
        place = pc.index_in(wanted.take(rows), value_set=part[column].combine_chunks())
        if place.null_count:
            missing = ids.take(rows).filter(pc.is_null(place))[0].as_py()
            raise UserError(
                f"reference log-probabilities of record_id {missing!r}, branch {branch}, are "
                "missing; give the reference made from these pairs with this seed and number of "
                "epochs"
            )
        logps_R[rows] = part["logp"].take(place).to_numpy()
    return logps_R
