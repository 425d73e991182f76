"""Tables of pairs, groups and pools become rows in the form that models take them.

Codes of all rows lie in files that are unlinked, so that memory does not grow with the pool.
Shapes: R rows of two samples each, B records of a table, S samples of them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image

from core.config import Training
from core.errors import UserError
from core.stage import ProgressFactory
from data.tables import count_rows, decode_image, iter_batches, stored_table
from models.batches import Batches
from models.losses import group_advantages
from models.protocol import MODALITIES, Drawn, Modality, Seen, UnifiedModel
from training.data import (
    GROUPS,
    IMAGES,
    PAIRS,
    POOL,
    POOL_COLUMNS,
    TEXT_COLUMNS,
    Array,
    Floats,
    Grouped,
    Ints,
    PairRows,
    Redraws,
)


@dataclass(frozen=True)
class Encoding:
    """What rows are made of beside what their table says."""

    shrink: int | None = None
    """Pictures are redrawn, too, by what is read of them at 1/n of their detail; None: they are
    not."""
    ranked: bool = False
    """Rows of a group are its best sample and its worst, its second best and second worst, ..."""
    likeness: bool = False
    iteration: int = 1
    """That of records of a pool, which has none of its own."""

    @classmethod
    def of(cls, training: Training, iteration: int) -> "Encoding":
        """As an objective needs it."""
        objective, beside = training.objective, training.reconstruction
        redrawn = objective.image if objective.name == "reconstruction" else beside
        return cls(
            redrawn.shrink if redrawn else None,
            objective.name == "group_dpo",
            objective.name == "group_policy" and objective.weigh_alike,
            iteration,
        )


PLAIN = Encoding()


def encode_pairs(
    table: pa.Table, model: UnifiedModel, batches: Batches, encoding: Encoding = PLAIN
) -> PairRows:
    """Rows of a `pairs` table in memory, images encoded in `batches`.

    A winner or loser without tokens is encoded from its image; the table needs `pair_columns`.
    """
    win, lose = (_drawn(table, name, model, batches) for name in IMAGES)
    seen, redraws = _pictures(table, model, batches, encoding)
    return PairRows(table.select(TEXT_COLUMNS), seen, win, lose, redraws=redraws)


def encode_pool(
    table: pa.Table, model: UnifiedModel, batches: Batches, encoding: Encoding
) -> PairRows:
    """Rows of a `pool` table: true captions win against nothing, and pictures are redrawn."""
    seen, redraws = _pictures(table, model, batches, encoding)
    assert redraws is not None  # nothing else learns from the pool
    given = table.select(["record_id", "prompt"])
    columns = {
        "iteration": pa.array(np.full(len(table), encoding.iteration, dtype=np.int32)),
        "caption_win": table["caption"],
        "caption_lose": pa.array([""] * len(table)),
    }
    for name, column in columns.items():
        given = given.append_column(name, column)
    return PairRows(given, seen, redraws.drawn, redraws.drawn, redraws=redraws)


def encode_groups(
    table: pa.Table, model: UnifiedModel, batches: Batches, encoding: Encoding = PLAIN
) -> PairRows:
    """Rows of a `groups` table, two samples of each modality at a time; as `encode_pairs`."""
    sizes = {m: pc.list_value_length(table[f"{m}_scores"]).to_numpy() for m in MODALITIES}
    rows_of = num_twos(*sizes.values())
    record_R = np.repeat(np.arange(table.num_rows), rows_of)
    inside_R = np.arange(len(record_R)) - np.repeat(np.cumsum(rows_of) - rows_of, rows_of)
    number_R2 = 2 * inside_R[:, None] + np.arange(2)
    samples, advantages, shares, places = {}, {}, {}, {}
    for modality, size_B in sizes.items():
        there_R2 = number_R2 < size_B[record_R, None]
        numbers_R2 = np.where(there_R2, number_R2, 0)
        # So that the mean over rows is that over groups, however many rows each takes.
        shares[modality] = there_R2 * (len(record_R) / len(table) / size_B)[record_R, None]
        scores = table[f"{modality}_scores"].to_pylist()
        first_R1 = (np.cumsum(size_B) - size_B)[record_R, None]
        if encoding.ranked:
            numbers_R2 = np.concatenate([ranked(one) for one in scores])[first_R1 + numbers_R2]
        samples[modality] = numbers_R2
        places[modality] = first_R1 + numbers_R2
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
    seen, redraws = _pictures(table, model, batches, encoding)
    win, lose = (drawn[places["image"][:, side]] for side in range(2))
    likeness_R = np.ones(len(record_R))
    if encoding.likeness:
        true = redraws.drawn if redraws else _each(table["image"], model.encode, batches)
        likeness_R = likeness(drawn, true, sizes["image"])[record_R]
    grouped = Grouped(record_R, samples, advantages, shares, likeness_R)
    return PairRows(text, seen, win, lose, grouped, redraws)


def ranked(scores: Sequence[float]) -> Ints:
    """Samples by score: the best and the worst, the second best and the second worst, and so on.

    Of equal ones the first sample is the better one.
    """
    down = np.argsort(-np.asarray(scores), kind="stable")
    half = -(-len(down) // 2)
    order = np.empty_like(down)
    order[::2], order[1::2] = down[:half], down[half:][::-1]
    return order


def likeness(drawn: Drawn, true: Drawn, sizes_B: Ints) -> Floats:
    """[B] mean share of codes that the drawings of a record have in common with its picture.

    `drawn` holds `sizes_B` drawings of each of the B records one after the other.
    """
    same = (drawn == np.repeat(true, sizes_B, axis=0)).reshape(len(drawn), -1).mean(axis=1)
    record_S = np.repeat(np.arange(len(sizes_B)), sizes_B)
    return np.bincount(record_S, same, len(sizes_B)) / sizes_B


def _pictures(
    table: pa.Table, model: UnifiedModel, batches: Batches, encoding: Encoding
) -> tuple[Seen, Redraws | None]:
    """The pictures of records as they are read, and as they are to be redrawn if they are."""
    images, shrink = table["image"], encoding.shrink
    seen = Seen(_each(images, lambda part: model.see(part).rows, batches))
    if shrink is None:
        return seen, None

    def see_less(part: list[Image.Image]) -> Array:
        return model.see([shrunk(one, shrink) for one in part]).rows

    less = Seen(_each(images, see_less, batches)) if shrink > 1 else seen
    return seen, Redraws(less, _each(images, model.encode, batches))


def shrunk(image: Image.Image, times: int) -> Image.Image:
    """A picture of the same size with as much detail as one of 1/n of its width and height."""
    small = [max(1, side // times) for side in image.size]
    rgb = image.convert("RGB")
    return rgb.resize((small[0], small[1]), Image.Resampling.BOX).resize(
        image.size, Image.Resampling.BILINEAR
    )


def num_twos(*sizes_B: Ints) -> Ints:
    """Rows that groups take, by how many samples of each modality they have."""
    most_B: Ints = np.maximum.reduce(sizes_B)
    return -(-most_B // 2)


def encode_rows(
    table: pa.Table, model: UnifiedModel, batches: Batches, encoding: Encoding = PLAIN
) -> PairRows:
    """Rows of a table of pairs, of groups or of a pool."""
    if "image_tokens" in table.column_names:
        return encode_groups(table, model, batches, encoding)
    encode = encode_pairs if "caption_win" in table.column_names else encode_pool
    return encode(table, model, batches, encoding)


def learnt_table(paths: Sequence[Path]) -> tuple[str, list[str] | None]:
    """Which table some files hold, pairs, groups or pool, and the columns of it that are read."""
    name = stored_table(paths[0]) if paths else PAIRS
    if name == POOL:
        return name, POOL_COLUMNS
    return (name, None) if name == GROUPS else (PAIRS, pair_columns(paths))


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
    paths: Sequence[Path],
    model: UnifiedModel,
    batch_size: int,
    progress: ProgressFactory,
    encoding: Encoding = PLAIN,
) -> Iterator[PairRows]:
    """All pairs, groups or records of some files; images are encoded once.

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
        columns: dict[str, _Column] = {}
        for table in iter_batches(paths, name, read):
            part = encode_rows(table, model, batches, encoding)
            of_rows = {} if name == POOL else {"win": part.win, "lose": part.lose}
            # Codes are read as they are stored, in 32 bits.
            values = {side: codes.astype(np.int32) for side, codes in of_rows.items()}
            values["seen"] = part.seen.rows
            if part.redraws:
                values["read"] = part.redraws.seen.rows
                values["true"] = part.redraws.drawn.astype(np.int32)
            for key, rows in values.items():
                length = num_rows if key in of_rows else num_records
                if key not in columns:
                    columns[key] = _Column(files, length, rows)
                columns[key].append(rows)
            texts.append(part.text)
            groups += [part.grouped] if part.grouped else []
            bar.update(len(table))
        found = {key: column.array for key, column in columns.items()}
        redraws = Redraws(Seen(found["read"]), found["true"]) if "true" in found else None
        # Of a pool nothing is drawn but the pictures themselves.
        win, lose = (found["true"] if name == POOL else found[side] for side in ("win", "lose"))
        text = pa.concat_tables(texts).combine_chunks()
        grouped = _joined(groups) if groups else None
        yield PairRows(text, Seen(found["seen"]), win, lose, grouped, redraws)


def _count_twos(paths: Sequence[Path]) -> int:
    columns = [f"{modality}_scores" for modality in MODALITIES]
    return sum(
        int(num_twos(*(pc.list_value_length(table[name]).to_numpy() for name in columns)).sum())
        for table in iter_batches(paths, GROUPS, columns)
    )


def _joined(groups: Sequence[Grouped]) -> Grouped:
    """The rows of all parts, whose records follow each other."""
    records = [int(part.record_R[-1]) + 1 for part in groups]
    before = np.cumsum([0, *records[:-1]])
    rows_each = [len(part.record_R) / number for part, number in zip(groups, records, strict=True)]
    of_all = sum(len(part.record_R) for part in groups) / sum(records)

    def join(name: str) -> dict[Modality, Array]:
        return {m: np.concatenate([getattr(part, name)[m] for part in groups]) for m in MODALITIES}

    return Grouped(
        np.concatenate([part.record_R + first for part, first in zip(groups, before, strict=True)]),
        **{name: join(name) for name in ("samples", "advantages")},
        # Those of a part are of its own mean number of rows.
        shares={
            m: np.concatenate(
                [
                    part.shares[m] * (of_all / of_part)
                    for part, of_part in zip(groups, rows_each, strict=True)
                ]
            )
            for m in MODALITIES
        },
        likeness_R=np.concatenate([part.likeness_R for part in groups]),
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
