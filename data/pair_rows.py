"""Puts finished pair rows together from the pool, the samples and the old pairs.

Contents are fetched by row number, batch by batch, so memory does not grow with the pool.
Shapes: R records, B records of a batch.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from core.config import PairRule
from core.errors import UserError
from core.progress import Progress
from data.pairing import Flags, Ints, LoserFrom, Picks
from data.rows import RowReader
from data.schemas import arrow_schema
from data.tables import ROW_GROUP

FRESH = "fresh"
OLD_SIDES = {LoserFrom.OLD_WINNER: "win", LoserFrom.OLD_LOSER: "lose"}
SAMPLE_COLUMNS = {"caption": ["text"], "image": ["image", "tokens"]}
POOL_COLUMNS = ["record_id", "image", "prompt", "caption"]

Columns = dict[str, pa.ChunkedArray]


def provenance(origin: LoserFrom, iteration: int) -> str:
    """How a loser came to be in the pairs of `iteration`."""
    names = {
        LoserFrom.SAMPLES: FRESH,
        LoserFrom.OLD_WINNER: f"beaten winner of iteration {iteration - 1}",
        LoserFrom.OLD_LOSER: f"old loser of iteration {iteration - 1}",
    }
    return names[origin]


@dataclass(frozen=True)
class PickedBranch:
    """One modality: its samples, what was picked from them and what became of each record.

    With `truth_wins` the winners are rows of the pool.
    """

    modality: str
    rule: PairRule
    samples: RowReader
    picks: Picks
    fate_R: Ints
    truth_wins: bool = False


@dataclass
class Tally:
    """What happened while rows were put together."""

    pairs: int = 0
    identical: Counter[str] = field(default_factory=Counter)
    alike: Counter[str] = field(default_factory=Counter)
    old_losers: Counter[str] = field(default_factory=Counter)
    score_sums: dict[str, float] = field(default_factory=dict)

    def add(self, table: pa.Table) -> None:
        """Count finished rows and sum up their scores."""
        self.pairs += table.num_rows
        for modality in SAMPLE_COLUMNS:
            for side in ("win", "lose"):
                column = f"{modality}_{side}_score"
                total = pc.sum(table[column].cast(pa.float64())).as_py()
                self.score_sums[column] = self.score_sums.get(column, 0.0) + total
            fresh = pc.sum(pc.equal(table[f"{modality}_provenance"], FRESH)).as_py()
            self.old_losers[modality] += table.num_rows - fresh


class PairAssembler:
    """Fetches the contents of picked rows; `old` are the pairs of the iteration before."""

    def __init__(
        self,
        pool: RowReader,
        branches: Sequence[PickedBranch],
        old: RowReader | None,
        iteration: int,
        seen: Callable[[Sequence[str]], Sequence[Hashable]] | None = None,
    ) -> None:
        """`seen` is what the model sees of captions, which may differ where it sees nothing."""
        self.tally = Tally()
        self._seen = seen
        self._pool, self._branches = pool, branches
        self._old, self._iteration = old, iteration

    def batches(self, records: Ints, progress: Progress) -> Iterator[pa.Table]:
        """Tables of at most ROW_GROUP finished rows, none of them empty."""
        for start in range(0, len(records), ROW_GROUP):
            chosen_B = records[start : start + ROW_GROUP]
            table = self._rows(chosen_B)
            if table.num_rows:
                self.tally.add(table)
                yield table
            progress.update(len(chosen_B))

    def _rows(self, chosen_B: Ints) -> pa.Table:
        columns = _columns(self._pool.take(chosen_B, POOL_COLUMNS))
        same_B = np.zeros(len(chosen_B), dtype=np.bool_)
        for branch in self._branches:
            columns |= self._sides(branch, chosen_B)
            identical_B = _identical(columns, branch.modality)
            self.tally.identical[branch.modality] += int((identical_B & ~same_B).sum())
            same_B |= identical_B
            if branch.modality == "caption" and self._seen is not None:
                alike_B = self._alike(columns) & ~same_B
                self.tally.alike[branch.modality] += int(alike_B.sum())
                same_B |= alike_B
        columns["iteration"] = pa.array(np.full(len(chosen_B), self._iteration, dtype=np.int32))
        schema = arrow_schema("pairs")
        table = pa.table([columns[name] for name in schema.names], names=schema.names).cast(schema)
        return table.filter(pa.array(~same_B))

    def _alike(self, columns: Columns) -> Flags:
        """Rows whose captions are the same to the model."""
        assert self._seen is not None
        win, lose = (self._seen(columns[f"caption_{s}"].to_pylist()) for s in ("win", "lose"))
        return np.array([a == b for a, b in zip(win, lose, strict=True)], np.bool_)

    def _sides(self, branch: PickedBranch, chosen_B: Ints) -> Columns:
        modality, picks = branch.modality, branch.picks
        from_B = picks.loser_from_R[chosen_B]
        picked = {"lose": (picks.loser_row_R[chosen_B], from_B)}
        columns: Columns = {}
        if branch.truth_wins:
            columns = self._truth(branch, chosen_B)
        else:
            fresh_B = np.full(len(chosen_B), LoserFrom.SAMPLES)
            picked["win"] = picks.winner_row_R[chosen_B], fresh_B
        columns |= self._content(branch, picked)
        columns[f"{modality}_win_score"] = _floats(picks.winner_score_R[chosen_B])
        columns[f"{modality}_lose_score"] = _floats(picks.loser_score_R[chosen_B])
        names = pa.array([provenance(origin, self._iteration) for origin in LoserFrom])
        columns[f"{modality}_provenance"] = names.take(pa.array(from_B))
        return columns

    def _truth(self, branch: PickedBranch, chosen_B: Ints) -> Columns:
        """The records' own captions, or images, whose tokens are left empty: training has them."""
        own = self._pool.take(chosen_B, [branch.modality])[branch.modality]
        columns: Columns = {f"{branch.modality}_win": own}
        if branch.modality == "image":
            tokens = arrow_schema("pairs").field("image_win_tokens").type
            columns["image_win_tokens"] = pa.chunked_array([pa.array([[]] * len(own), tokens)])
        return columns

    def _content(self, branch: PickedBranch, picked: Mapping[str, tuple[Ints, Ints]]) -> Columns:
        """Text, or image and tokens, of rows of the samples or of the old pairs, by side.

        Both sides at once, since samples of a record lie together.
        """
        row_N, from_N = (np.concatenate(parts) for parts in zip(*picked.values(), strict=True))
        pieces, places = [], []
        for origin in (LoserFrom(int(value)) for value in np.unique(from_N)):
            place = np.flatnonzero(from_N == origin)
            if origin is LoserFrom.SAMPLES:
                piece = branch.samples.take(row_N[place], SAMPLE_COLUMNS[branch.modality])
            else:
                assert self._old is not None
                names = _content_names(branch, OLD_SIDES[origin])
                piece = self._old.take(row_N[place], names)
            pieces.append(piece.rename_columns(SAMPLE_COLUMNS[branch.modality]))
            places.append(place)
        table = pa.concat_tables(pieces).take(np.argsort(np.concatenate(places)))
        columns: Columns = {}
        size = len(row_N) // len(picked)
        for number, side in enumerate(picked):
            part = table.slice(number * size, size)
            columns |= _columns(part.rename_columns(_content_names(branch, side)))
        return columns


def _columns(table: pa.Table) -> Columns:
    return dict(zip(table.column_names, table.columns, strict=True))


def _content_names(branch: PickedBranch, side: str) -> list[str]:
    name = f"{branch.modality}_{side}"
    return [name] if branch.modality == "caption" else [name, f"{name}_tokens"]


def _floats(values: npt.NDArray[np.float64]) -> pa.Array:
    return pa.array(values.astype(np.float32))


def _identical(columns: Mapping[str, pa.ChunkedArray], modality: str) -> Flags:
    """Rows whose winner and loser would train as the same tokens."""
    if modality == "caption":
        win, lose = (pc.utf8_trim_whitespace(columns[f"caption_{s}"]) for s in ("win", "lose"))
        equal: Flags = pc.equal(win, lose).to_numpy()
        return equal
    tokens = [columns[f"image_{side}_tokens"].combine_chunks() for side in ("win", "lose")]
    if not len(tokens[0].flatten()):
        return np.zeros(len(tokens[0]), np.bool_)  # true images, which have no tokens yet
    lengths = np.unique(np.concatenate([pc.list_value_length(side).to_numpy() for side in tokens]))
    if len(lengths) != 1:
        raise UserError(
            f"images have {lengths.tolist()} tokens; pair images of one image tokenizer only"
        )
    win_BN, lose_BN = (
        pc.list_flatten(side).to_numpy().reshape(len(side), lengths[0]) for side in tokens
    )
    same: Flags = (win_BN == lose_BN).all(axis=1)
    return same
