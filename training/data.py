"""Homologous pairs in the form that models take them, and the order in which they are seen.

A group of samples is taken two at a time, so that it passes models as pairs do, whatever its size.

Where the likelihood of an image is an estimate, reference and training must take the same draws, so
their seeds are derived here and nowhere else.
Shapes: R pairs of an iteration, B pairs of a batch, X of a drawn picture, E epochs.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image

from core.config import Training
from core.errors import UserError
from core.runtime import derive_seed
from core.stage import ProgressFactory
from data.tables import count_rows, decode_image, iter_batches, stored_table
from models.batches import Batches
from models.losses import group_advantages
from models.protocol import MODALITIES, Drawn, Modality, PairBatch, Seen, UnifiedModel

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
PAIRS, GROUPS = "pairs", "groups"
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

    def batch(self, rows_B: Ints, epoch: int, draws: Draws) -> PairBatch:
        """Both modalities of these rows."""
        rows = self.text.take(rows_B)
        columns = (rows[name].to_pylist() for name in ("record_id", "iteration"))
        identity = list(zip(*columns, strict=True))
        return PairBatch(
            seen=self.seen[rows_B if self.grouped is None else self.grouped.record_R[rows_B]],
            captions_win=rows["caption_win"].to_pylist(),
            captions_lose=rows["caption_lose"].to_pylist(),
            prompts=rows["prompt"].to_pylist(),
            drawn_win=self.win[rows_B].astype(np.int64),
            drawn_lose=self.lose[rows_B].astype(np.int64),
            draw_seeds=[draw_seed(draws.seed, name, it, epoch) for name, it in identity],
            unprompted=[draws.unprompted(name, it) for name, it in identity],
            num_draws=draws.num_draws,
        )


def encode_pairs(table: pa.Table, model: UnifiedModel, batches: Batches) -> PairRows:
    """Rows of a `pairs` table in memory, images encoded in `batches`.

    A winner or loser without tokens is encoded from its image; the table needs `pair_columns`.
    """
    win, lose = (_drawn(table, name, model, batches) for name in IMAGES)
    seen = _each(table["image"], lambda images: model.see(images).rows, batches)
    return PairRows(table.select(TEXT_COLUMNS), Seen(seen), win, lose)


def encode_groups(table: pa.Table, model: UnifiedModel, batches: Batches) -> PairRows:
    """Rows of a `groups` table, two samples of each modality at a time; as `encode_pairs`."""
    sizes = {m: pc.list_value_length(table[f"{m}_scores"]).to_numpy() for m in MODALITIES}
    rows_of = num_twos(*sizes.values())
    record_R = np.repeat(np.arange(table.num_rows), rows_of)
    inside_R = np.arange(len(record_R)) - np.repeat(np.cumsum(rows_of) - rows_of, rows_of)
    number_R2 = 2 * inside_R[:, None] + np.arange(2)
    samples, advantages, shares, places = {}, {}, {}, {}
    for modality, size_B in sizes.items():
        there_R2 = number_R2 < size_B[record_R, None]
        samples[modality] = np.where(there_R2, number_R2, 0)
        shares[modality] = there_R2 * (rows_of / size_B)[record_R, None]
        places[modality] = (np.cumsum(size_B) - size_B)[record_R, None] + samples[modality]
        scores = table[f"{modality}_scores"].to_pylist()
        better = [group_advantages(torch.tensor(one, dtype=torch.float64)) for one in scores]
        advantages[modality] = torch.cat(better).numpy()[places[modality]]
    tokens = pa.table(
        {
            "record_id": table["record_id"].take(np.repeat(np.arange(len(table)), sizes["image"])),
            "image_tokens": table["image_tokens"].combine_chunks().flatten(),
        }
    )
    drawn = _tokens(tokens, "image_tokens", model.drawn_shape)
    text = table.select(["record_id", "iteration", "prompt"]).take(record_R)
    captions = table["captions"].combine_chunks().flatten()
    for side, name in enumerate(("caption_win", "caption_lose")):
        text = text.append_column(name, captions.take(places["caption"][:, side]))
    seen = _each(table["image"], lambda images: model.see(images).rows, batches)
    win, lose = (drawn[places["image"][:, side]] for side in range(2))
    return PairRows(text, Seen(seen), win, lose, Grouped(record_R, samples, advantages, shares))


def num_twos(*sizes_B: Ints) -> Ints:
    """Rows that groups take, by how many samples of each modality they have."""
    most_B: Ints = np.maximum.reduce(sizes_B)
    return -(-most_B // 2)


def encode_rows(table: pa.Table, model: UnifiedModel, batches: Batches) -> PairRows:
    """Rows of a table of pairs or of groups."""
    encode = encode_groups if "image_tokens" in table.column_names else encode_pairs
    return encode(table, model, batches)


def learnt_table(paths: Sequence[Path]) -> tuple[str, list[str] | None]:
    """Which table some files hold, pairs or groups, and the columns of it that are read."""
    if paths and stored_table(paths[0]) == GROUPS:
        return GROUPS, None
    return PAIRS, pair_columns(paths)


def pair_columns(paths: Sequence[Path]) -> list[str]:
    """Columns that `encode_pairs` needs: images of winners and losers only where tokens lack."""
    tokens = [f"{name}_tokens" for name in IMAGES]
    bare = set()
    for table in iter_batches(paths, "pairs", tokens):
        bare |= {name for name in IMAGES if _without_tokens(table, name).any()}
    return [*TEXT_COLUMNS, "image", *tokens, *sorted(bare)]


def _without_tokens(table: pa.Table, name: str) -> npt.NDArray[np.bool_]:
    bare: npt.NDArray[np.bool_] = pc.list_value_length(table[f"{name}_tokens"]).to_numpy() == 0
    return bare


def _each(
    images: pa.ChunkedArray, look: Callable[[list[Image.Image]], Array], batches: Batches
) -> Array:
    def part(first: int, last: int) -> Array:
        rows = images.slice(first, last - first).to_pylist()
        return look([decode_image(row) for row in rows])

    return np.concatenate(list(batches.map(len(images), part)))


def _drawn(table: pa.Table, name: str, model: UnifiedModel, batches: Batches) -> Drawn:
    """All winners or losers: their tokens, or the codes of the images of rows that lack them."""
    bare_B = _without_tokens(table, name)
    drawn = np.empty((table.num_rows, *model.drawn_shape), dtype=np.int64)
    if not bare_B.all():
        known = table.filter(pa.array(~bare_B))
        drawn[~bare_B] = _tokens(known, f"{name}_tokens", model.drawn_shape)
    if bare_B.any():
        drawn[bare_B] = _each(table[name].filter(pa.array(bare_B)), model.encode, batches)
    return drawn


def _tokens(table: pa.Table, column: str, shape: tuple[int, ...]) -> Drawn:
    values, num_tokens = table[column].combine_chunks(), math.prod(shape)
    lengths = pc.list_value_length(values).to_numpy()
    if (lengths != num_tokens).any():
        row = int(np.argmax(lengths != num_tokens))
        raise UserError(
            f"pairs: record_id {table['record_id'][row].as_py()!r}, column {column} has "
            f"{lengths[row]} tokens, the model's images have {num_tokens}; sample with this model"
        )
    drawn: Drawn = pc.list_flatten(values).to_numpy().reshape(len(values), *shape)
    return drawn


@contextmanager
def open_pairs(
    paths: Sequence[Path], model: UnifiedModel, batch_size: int, progress: ProgressFactory
) -> Iterator[PairRows]:
    """All pairs or groups of some files; images are encoded once.

    Codes lie on disk, so memory stays small.
    """
    num_records = count_rows(paths)
    if num_records == 0:
        raise UserError("there are no pairs to train on; see the results of stage pair")
    batches = Batches(batch_size, "runtime.batch_records", "set runtime.device: cpu")
    name, read = learnt_table(paths)
    num_rows = _count_twos(paths) if name == GROUPS else num_records
    texts, groups = [], []
    with ExitStack() as files, progress("encode images", num_records) as bar:
        columns: list[_Column] = []
        for table in iter_batches(paths, name, read):
            part = encode_rows(table, model, batches)
            # Codes are read as they are stored, in 32 bits.
            values = (part.seen.rows, part.win.astype(np.int32), part.lose.astype(np.int32))
            if not columns:
                lengths = (num_records, num_rows, num_rows)
                columns = [_Column(files, *given) for given in zip(lengths, values, strict=True)]
            for column, rows in zip(columns, values, strict=True):
                column.append(rows)
            texts.append(part.text)
            groups += [part.grouped] if part.grouped else []
            bar.update(len(table))
        seen, win, lose = (column.array for column in columns)
        text = pa.concat_tables(texts).combine_chunks()
        yield PairRows(text, Seen(seen), win, lose, _joined(groups) if groups else None)


def _count_twos(paths: Sequence[Path]) -> int:
    columns = [f"{modality}_scores" for modality in MODALITIES]
    return sum(
        int(num_twos(*(pc.list_value_length(table[name]).to_numpy() for name in columns)).sum())
        for table in iter_batches(paths, GROUPS, columns)
    )


def _joined(groups: Sequence[Grouped]) -> Grouped:
    """The rows of all parts, whose records follow each other."""
    before = np.cumsum([0, *(part.record_R[-1] + 1 for part in groups[:-1])])

    def join(name: str) -> dict[Modality, Array]:
        return {m: np.concatenate([getattr(part, name)[m] for part in groups]) for m in MODALITIES}

    return Grouped(
        np.concatenate([part.record_R + first for part, first in zip(groups, before, strict=True)]),
        **{name: join(name) for name in ("samples", "advantages", "shares")},
    )


class _Column:
    """An array in a file that is unlinked, so that even a killed process leaves nothing behind."""

    def __init__(self, files: ExitStack, num_rows: int, like: Array) -> None:
        file = files.enter_context(TemporaryFile())  # noqa: SIM115 (closed by the stack)
        shape = (num_rows, *like.shape[1:])
        self.array: Array = np.memmap(file, dtype=like.dtype, mode="w+", shape=shape)
        self._filled = 0

    def append(self, rows: Array) -> None:
        self.array[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)


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
