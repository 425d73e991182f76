"""The end of an ingestion: staged parts become those of a pool and of a test set.

Each part is divided by itself and then removed, so a killed division goes on, and hardly more space
is needed than for the pool.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from core.files import TemporaryFolder, put_in_place, writing_to
from data.held_out import KEPT, KEPT_ROWS, keep_looks
from data.ingest.parts import PartWriter, part_path, rows_of
from data.ingest.questions import ById, on_disk
from data.ingest.state import HELD, Plan, State
from data.looks import Ints, Looks
from data.tables import ROW_GROUP, iter_batches

LARGEST = 2.0**64
Side = npt.NDArray[np.bool_]


class Division:
    """Staged rows on their way into `pool/` and `test/` below a folder."""

    def __init__(self, state: State, scratch: TemporaryFolder, plan: Plan, looks: Looks) -> None:
        self._state, self._scratch, self._plan, self._looks = state, scratch, plan, looks
        self._pool = state.folder / "pool" / "part-"
        self._held = state.staging / HELD

    def run(self) -> None:
        """Divide what is not divided yet."""
        joined = (row for chunk in self._state.chunks() for row in chunk.joined)
        first = 0
        with on_disk() as database:
            more = ById(database, ((row["record_id"], row) for row in joined))
            for number, size in enumerate(self._plan.sizes):
                rows = slice(first, first + size)
                first += size
                if self._state.staged(number).is_file():
                    self._part(number, self._plan.held_out[rows], self._looks[rows], more)
        with PartWriter(self._scratch, self._state.folder / "test" / "part-") as test:
            for number in range(len(self._plan.sizes)):
                path = part_path(self._held, number)
                for row in _rows(path) if path.is_file() else ():
                    test.add(row)

    def _part(self, number: int, held_out: Side, looks: Looks, joined: ById) -> None:
        """Divide a part. A part whose staged file is gone is divided, so that goes last."""
        staged, target = self._state.staged(number), part_path(self._pool, number)
        ids = pq.read_table(staged, columns=["record_id"])["record_id"].to_pylist()
        more = {record_id: found for record_id in ids if (found := joined.of(record_id))}
        if not held_out.any() and not more:
            self._keep_looks(staged, looks)
            with writing_to(target):
                put_in_place(staged, target)
            return
        with (
            PartWriter(self._scratch, self._pool, number) as pool,
            PartWriter(self._scratch, self._held, number) as test,
        ):
            for row, is_held_out in zip(_rows(staged), held_out, strict=True):
                (test if is_held_out else pool).add(_extended(row, more.get(row["record_id"], ())))
        self._keep_looks(target, looks[~held_out])
        staged.unlink()

    def _keep_looks(self, path: Path, looks: Looks) -> None:
        """Keep the looks of a file of the pool, wherever it lies yet."""
        if len(looks) >= KEPT_ROWS:
            keep_looks(self._pool.parent / KEPT, path, looks)


def _extended(row: dict[str, Any], more: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A row with the captions and questions of later rows of its picture."""
    for one in more:
        row["references"] += [text for text in one["captions"] if text not in row["references"]]
        row["questions"] += [asked for asked in one["questions"] if asked not in row["questions"]]
    return row


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for table in iter_batches(path, "pool", batch_size=ROW_GROUP):
        yield from rows_of(table)


def held_out(looks_N: Looks, group_N: Ints, records: int = 0, share: float = 0.0) -> Side:
    """Which records are held out, by hashes of their pictures: about a number, or a share.

    Equal pictures and near twins are a group, and a group is on one side, however often its
    pictures occur, whatever their records are called, in any order of the source.

    A group larger than the wanted number stays in the pool, where several fit in its place.
    """
    lowest_N = np.full(len(group_N), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(lowest_N, group_N, looks_N["pixels"])
    value_N = _mixed(lowest_N[group_N])
    if not records:
        return np.asarray(value_N < share * LARGEST)
    groups_G, size_G = np.unique(group_N, return_counts=True)
    order_G = np.argsort(value_N[groups_G], kind="stable")
    fitting_G = order_G[size_G[order_G] <= records]
    before_G = np.cumsum(size_G[fitting_G]) - size_G[fitting_G]
    return np.isin(group_N, groups_G[fitting_G[before_G < records]])


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Evenly spread values: the lowest of a large group would nearly always be held out."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(values ^ (values >> np.uint64(31)))
