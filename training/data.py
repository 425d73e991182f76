"""Homologous pairs in the form that models take them, and the order in which they are seen.

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
from PIL import Image

from core.config import Training
from core.errors import UserError
from core.runtime import derive_seed
from core.stage import ProgressFactory
from data.tables import count_rows, decode_image, iter_batches
from models.batches import Batches
from models.protocol import Drawn, Modality, PairBatch, Seen, UnifiedModel

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
class PairRows:
    """Pairs in the model's form: pictures of the records as read, winners and losers as drawn."""

    text: pa.Table
    seen: Seen
    win: Drawn
    lose: Drawn

    def __len__(self) -> int:
        return len(self.seen)

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
            seen=self.seen[rows_B],
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
    """All pairs of some files, images encoded once; codes lie on disk, so memory stays small."""
    num_pairs = count_rows(paths)
    if num_pairs == 0:
        raise UserError("there are no pairs to train on; see the results of stage pair")
    batches = Batches(batch_size, "runtime.batch_records", "set runtime.device: cpu")
    texts = []
    with ExitStack() as files, progress("encode images", num_pairs) as bar:
        columns: list[_Column] = []
        for table in iter_batches(paths, "pairs", pair_columns(paths)):
            part = encode_pairs(table, model, batches)
            # Codes are read as they are stored, in 32 bits.
            values = (part.seen.rows, part.win.astype(np.int32), part.lose.astype(np.int32))
            columns = columns or [_Column(files, num_pairs, rows) for rows in values]
            for column, rows in zip(columns, values, strict=True):
                column.append(rows)
            texts.append(part.text)
            bar.update(len(part))
        seen, win, lose = (column.array for column in columns)
        yield PairRows(pa.concat_tables(texts).combine_chunks(), Seen(seen), win, lose)


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
    caption = np.stack([_lookup(stored, "caption", s, ids, None) for s in SIDES], axis=1)
    images = []
    for epoch in range(max(1, epochs)):
        seeds = pa.array([draw_seed(seed, name, iteration, epoch) for name, iteration in keys])
        given = seeds if epochs else None
        images.append(np.stack([_lookup(stored, "image", s, ids, given) for s in SIDES], axis=1))
    return ReferenceLogps(caption, np.stack(images))


def _lookup(
    stored: pa.Table, branch: str, side: str, ids: pa.ChunkedArray, seeds: pa.Array | None
) -> Floats:
    here = pc.and_(pc.equal(stored["branch"], branch), pc.equal(stored["side"], side))
    part = stored.filter(here)
    # A draw seed is unique to a record and an epoch.
    wanted, column = (ids, "record_id") if seeds is None else (seeds, "draw_seed")
    place = pc.index_in(wanted, value_set=part[column].combine_chunks())
    if place.null_count:
        missing = ids.filter(pc.is_null(place))[0].as_py()
        raise UserError(
            f"reference log-probabilities of record_id {missing!r}, branch {branch}, are missing; "
            "give the reference made from these pairs with this seed and number of epochs"
        )
    logps: Floats = part["logp"].take(place).to_numpy()
    return logps
