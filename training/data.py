"""Homologous pairs in the form that models take them, and the order in which they are seen.

Reference and training must see the same masks, so their seeds are derived here and nowhere else.
Shapes: R pairs of an iteration, B pairs of a batch, N image tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from core.errors import UserError
from core.runtime import derive_seed
from core.stage import ProgressFactory
from data.tables import count_rows, decode_image, iter_batches
from models.batches import Batches
from models.protocol import Codes, Modality, PairBatch, UnifiedModel

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Masking = tuple[int, int]
"""Seed of the run, masks a pair."""

TEXT_COLUMNS = ["record_id", "iteration", "prompt", "caption_win", "caption_lose"]
IMAGES = ("image_win", "image_lose")
SIDES = ("chosen", "rejected")
NO_MASK = 0
"""Mask seed of stored caption log-probabilities, which depend on no mask."""


def mask_seed(seed: int, record_id: str, iteration: int, epoch: int) -> int:
    """Seed of the image masks of a pair in an epoch."""
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
class PairRows:
    """Pairs with their images as codes; `codes_R3N` are source, winner and loser."""

    text: pa.Table
    codes_R3N: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.codes_R3N)

    def batch(self, rows_B: Ints, epoch: int, masking: Masking) -> PairBatch:
        """Both modalities of these rows."""
        seed, num_masks = masking
        rows = self.text.take(rows_B)
        codes_B3N = self.codes_R3N[rows_B].astype(np.int64)
        identity = zip(rows["record_id"].to_pylist(), rows["iteration"].to_pylist(), strict=True)
        return PairBatch(
            codes_BN=codes_B3N[:, 0],
            captions_win=rows["caption_win"].to_pylist(),
            captions_lose=rows["caption_lose"].to_pylist(),
            prompts=rows["prompt"].to_pylist(),
            codes_win_BN=codes_B3N[:, 1],
            codes_lose_BN=codes_B3N[:, 2],
            mask_seeds=[mask_seed(seed, record_id, it, epoch) for record_id, it in identity],
            num_masks=num_masks,
        )


def encode_pairs(table: pa.Table, model: UnifiedModel, batches: Batches) -> PairRows:
    """Rows of a `pairs` table in memory, images encoded in `batches`.

    A winner or loser without tokens is encoded from its image; the table needs `pair_columns`.
    """
    source_BN = _encode(table["image"], model, batches)
    sides = [_side_codes(table, name, source_BN, model, batches) for name in IMAGES]
    codes_B3N = np.stack([source_BN, *sides], axis=1).astype(np.int32)
    return PairRows(table.select(TEXT_COLUMNS), codes_B3N)


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


def _encode(images: pa.ChunkedArray, model: UnifiedModel, batches: Batches) -> Ints:
    def encode(first: int, last: int) -> Codes:
        batch = images.slice(first, last - first).to_pylist()
        return model.encode_images([decode_image(image) for image in batch])

    return np.concatenate(list(batches.map(len(images), encode)))


def _side_codes(
    table: pa.Table, name: str, source_BN: Ints, model: UnifiedModel, batches: Batches
) -> Ints:
    """Codes of all winners or losers: their tokens, or those of the images of rows that lack them.

    The record's own picture, which is the winner where truth wins, is not encoded twice.
    """
    bare_B = _without_tokens(table, name)
    codes_BN = source_BN.copy()
    if not bare_B.all():
        known = table.filter(pa.array(~bare_B))
        codes_BN[~bare_B] = _tokens(known, f"{name}_tokens", source_BN.shape[1])
    if bare_B.any():
        own, shown = (_contents(table[column]) for column in ("image", name))
        fresh_B = bare_B & pc.not_equal(own, shown).to_numpy(zero_copy_only=False)
        if fresh_B.any():
            codes_BN[fresh_B] = _encode(table[name].filter(pa.array(fresh_B)), model, batches)
    return codes_BN


def _contents(images: pa.ChunkedArray) -> pa.Array:
    return images.combine_chunks().field("bytes")


def _tokens(table: pa.Table, column: str, num_tokens: int) -> Ints:
    values = table[column].combine_chunks()
    lengths = pc.list_value_length(values).to_numpy()
    if (lengths != num_tokens).any():
        row = int(np.argmax(lengths != num_tokens))
        raise UserError(
            f"pairs: record_id {table['record_id'][row].as_py()!r}, column {column} has "
            f"{lengths[row]} tokens, the model's images have {num_tokens}; sample with this model"
        )
    codes: Ints = pc.list_flatten(values).to_numpy().reshape(len(values), num_tokens)
    return codes


@contextmanager
def open_pairs(
    paths: Sequence[Path], model: UnifiedModel, batch_size: int, progress: ProgressFactory
) -> Iterator[PairRows]:
    """All pairs of some files, images encoded once; codes lie on disk, so memory stays small."""
    num_pairs = count_rows(paths)
    if num_pairs == 0:
        raise UserError("there are no pairs to train on; see the results of stage pair")
    texts, filled = [], 0
    batches = Batches(batch_size, "runtime.batch_records", "set runtime.device: cpu")
    codes_R3N: npt.NDArray[np.int32] | None = None
    # Unlinked from the start, so that even a killed process leaves nothing behind.
    with TemporaryFile() as file:
        with progress("encode images", num_pairs) as bar:
            for table in iter_batches(paths, "pairs", pair_columns(paths)):
                part = encode_pairs(table, model, batches)
                if codes_R3N is None:
                    shape = (num_pairs, *part.codes_R3N.shape[1:])
                    codes_R3N = np.memmap(file, dtype=np.int32, mode="w+", shape=shape)
                codes_R3N[filled : filled + len(part)] = part.codes_R3N
                filled += len(part)
                texts.append(part.text)
                bar.update(len(part))
        assert codes_R3N is not None
        yield PairRows(pa.concat_tables(texts).combine_chunks(), codes_R3N)


@dataclass(frozen=True)
class ReferenceLogps:
    """Chosen and rejected log-probabilities of the reference; images by epoch E."""

    caption_R2: Floats
    image_ER2: Floats

    def take(self, modality: Modality, epoch: int, rows_B: Ints) -> Floats:
        """[B,2] of these rows in this epoch."""
        return (self.caption_R2 if modality == "caption" else self.image_ER2[epoch])[rows_B]


def join_reference(stored: pa.Table, rows: PairRows, seed: int, epochs: int) -> ReferenceLogps:
    """The stored `ref_logps` of every row, joined by record and mask seed."""
    ids = rows.text["record_id"]
    keys = list(zip(ids.to_pylist(), rows.text["iteration"].to_pylist(), strict=True))
    caption = np.stack([_lookup(stored, "caption", s, ids, None) for s in SIDES], axis=1)
    images = []
    for epoch in range(epochs):
        seeds = pa.array([mask_seed(seed, name, iteration, epoch) for name, iteration in keys])
        sides = [_lookup(stored, "image", side, ids, seeds) for side in SIDES]
        images.append(np.stack(sides, axis=1))
    return ReferenceLogps(caption, np.stack(images))


def _lookup(
    stored: pa.Table, branch: str, side: str, ids: pa.ChunkedArray, seeds: pa.Array | None
) -> Floats:
    here = pc.and_(pc.equal(stored["branch"], branch), pc.equal(stored["side"], side))
    part = stored.filter(here)
    # A mask seed is unique to a record and an epoch.
    wanted, column = (ids, "record_id") if seeds is None else (seeds, "mask_seed")
    place = pc.index_in(wanted, value_set=part[column].combine_chunks())
    if place.null_count:
        missing = ids.filter(pc.is_null(place))[0].as_py()
        raise UserError(
            f"reference log-probabilities of record_id {missing!r}, branch {branch}, are missing; "
            "give the reference made from these pairs with this seed and number of epochs"
        )
    logps: Floats = part["logp"].take(place).to_numpy()
    return logps
