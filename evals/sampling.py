"""Records that stand for a whole pool: spread by hashes of their ids, the same every time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.tables import iter_batches

BATCH = 64


def spread_records(files: Sequence[Path], columns: list[str], most: int) -> list[dict[str, Any]]:
    """At most so many records, those with the smallest hashes of their ids, in that order.

    `columns` has record_id. Ids of a pool of any size are looked at, but few are held.
    """
    found = [row for rows in spread_batches(files, columns, most) for row in rows]
    return sorted(found, key=lambda row: _hash(row["record_id"]))


def spread_batches(
    files: Sequence[Path], columns: list[str], most: int
) -> Iterator[list[dict[str, Any]]]:
    """The same records in the order of the files, a few at once, so that pictures need no room."""
    wanted = set(heapq.nsmallest(most, _ids(files), key=_hash))
    for batch in iter_batches(files, "pool", columns, batch_size=BATCH):
        mask = [record_id in wanted for record_id in batch["record_id"].to_pylist()]
        if any(mask):
            yield batch.filter(pa.array(mask)).to_pylist()


def _ids(files: Sequence[Path]) -> Iterator[str]:
    for batch in iter_batches(files, "pool", ["record_id"]):
        yield from batch["record_id"].to_pylist()


def _hash(record_id: str) -> str:
    return sha256(record_id.encode()).hexdigest()
