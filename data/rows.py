"""Some rows of tables that lie in many Parquet files: by number, by id, or spread over all."""

import heapq
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import UserError
from data.tables import iter_batches

Ints = npt.NDArray[np.int64]

IDS_AT_ONCE = 65_536
SPREAD_BATCH = 64


class RowReader:
    """Rows by their number, counted through all files in order.

    Holds one row group at a time and keeps one file open, so rows that lie close together are
    cheap. The files must be known to be valid.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._groups: list[tuple[Path, int]] = []
        self._file: tuple[Path, pq.ParquetFile] | None = None
        lengths = [0]
        for path in paths:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    self._groups.append((path, group))
                    lengths.append(file.metadata.row_group(group).num_rows)
        self._starts = np.cumsum(lengths)

    def take(self, rows: Ints, columns: Sequence[str]) -> pa.Table:
        """These rows in this order; at least one."""
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        group_of = np.searchsorted(self._starts, ordered, side="right") - 1
        first = np.unique(group_of, return_index=True)[1]
        pieces = []
        for wanted, group in zip(np.split(ordered, first[1:]), group_of[first], strict=True):
            pieces.append(self._read(int(group), columns).take(wanted - self._starts[group]))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return pa.concat_tables(pieces).take(back)

    def _read(self, group: int, columns: Sequence[str]) -> pa.Table:
        path, index = self._groups[group]
        if self._file is None or self._file[0] != path:
            # Parsing the footer of a large file takes longer than reading a row group.
            self._file = path, pq.ParquetFile(path)
        # A few columns of a few rows: threads would cost more than they save.
        table = self._file[1].read_row_group(index, columns=list(columns), use_threads=False)
        return table.select(list(columns)).replace_schema_metadata(None)


class PoolRecords:
    """Records of a pool by id, some at a time; of all together only the ids are in memory."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._rows = RowReader(paths)
        self._ids = pd.Index(
            [
                record_id
                for batch in iter_batches(paths, "pool", ["record_id"], batch_size=IDS_AT_ONCE)
                for record_id in batch["record_id"].to_pylist()
            ]
        )

    def take(self, ids: Sequence[str], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
        """These columns of these records, by id; UserError for an id that the pool lacks."""
        different = list(dict.fromkeys(ids))
        rows = self._ids.get_indexer(pd.Index(different))
        if (rows < 0).any():
            missing = different[int(np.argmax(rows < 0))]
            raise UserError(
                f"record_id {missing!r} is not in the pool; give the pool that these samples were "
                "made from"
            )
        found = self._rows.take(rows.astype(np.int64), columns).to_pylist()
        return dict(zip(different, found, strict=True))


def spread_records(files: Sequence[Path], columns: list[str], most: int) -> list[dict[str, Any]]:
    """Records that stand for a whole pool: those with the smallest hashes of their ids, in order.

    At most `most`; `columns` has record_id. Of a pool of any size few ids are held.
    """
    found = [row for rows in spread_batches(files, columns, most) for row in rows]
    return sorted(found, key=lambda row: _hash(row["record_id"]))


def spread_batches(
    files: Sequence[Path], columns: list[str], most: int
) -> Iterator[list[dict[str, Any]]]:
    """The same records in the order of the files, a few at once, so that pictures need no room."""
    wanted = set(heapq.nsmallest(most, _ids(files), key=_hash))
    for batch in iter_batches(files, "pool", columns, batch_size=SPREAD_BATCH):
        mask = [record_id in wanted for record_id in batch["record_id"].to_pylist()]
        if any(mask):
            yield batch.filter(pa.array(mask)).to_pylist()


def _ids(files: Sequence[Path]) -> Iterator[str]:
    for batch in iter_batches(files, "pool", ["record_id"]):
        yield from batch["record_id"].to_pylist()


def _hash(record_id: str) -> str:
    return sha256(record_id.encode()).hexdigest()
