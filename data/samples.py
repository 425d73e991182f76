"""Samples and their scores, joined by record and sample; contents stay in the files.

Shapes: S samples of all records.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.artifact import Artifact
from data.pairing import NONE, Ints, Scored
from data.schemas import arrow_schema
from data.tables import iter_batches

KEY_ROWS = 65_536  # rows of narrow columns read at once


def paths_of(artifacts: Sequence[Artifact]) -> list[Path]:
    """All Parquet files of some artifacts, in order."""
    return [path for artifact in artifacts for path in artifact.parts()]


def read_narrow(artifacts: Sequence[Artifact], table: str, columns: Sequence[str]) -> pa.Table:
    """Narrow columns of a whole table."""
    batches = list(iter_batches(paths_of(artifacts), table, columns, batch_size=KEY_ROWS))
    if not batches:
        return arrow_schema(table).empty_table().select(list(columns))
    return pa.concat_tables(batches)


def index_in_pool(ids: pa.ChunkedArray, pool_ids: pa.Array) -> Ints:
    """Where each id stands in the pool; NONE if it does not."""
    index = pc.fill_null(pc.index_in(ids, value_set=pool_ids), NONE)
    rows: Ints = index.to_numpy().astype(np.int64)
    return rows


def join_scores(samples: pa.Table, scores: pa.Table, pool_ids: pa.Array) -> Scored:
    """Samples of pool records that have a score, by (record, sample)."""
    record_S, sample_S, key_S = _keys(samples, pool_ids)
    _, _, score_key = _keys(scores, pool_ids)
    order = np.argsort(score_key)
    ordered = np.append(score_key[order], np.iinfo(np.int64).max)
    place_S = np.searchsorted(ordered, key_S)
    matched = np.flatnonzero((ordered[place_S] == key_S) & (record_S != NONE))
    score = scores["score"].to_numpy().astype(np.float64)
    may_win = np.ones(len(key_S), dtype=np.bool_)
    if "may_win" in samples.column_names:
        may_win = samples["may_win"].to_numpy()
    return Scored(
        record_S=record_S[matched],
        sample_S=sample_S[matched],
        row_S=matched,
        score_S=score[order[place_S[matched]]],
        may_win_S=may_win[matched],
    )


def _keys(table: pa.Table, pool_ids: pa.Array) -> tuple[Ints, Ints, Ints]:
    """Record, sample and one number for both."""
    record = index_in_pool(table["record_id"], pool_ids)
    sample = table["sample"].to_numpy().astype(np.int64)
    return record, sample, (record << 32) | sample
