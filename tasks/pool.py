"""Stage `pool` and `test`: the records to learn from and those to be judged on, checked.

The shapes world renders its own; a user's Parquet files are checked row by row and copied, so that
later stages and later runs see exactly these bytes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from core.command import stage_command
from core.config import Config
from core.stage import Stage, StageContext
from data.checks import check_asked
from data.shapes.records import make_records
from data.tables import TableWriter, iter_batches, parquet_files

PART = "part-00000.parquet"
BATCH = 256


def _pool(context: StageContext) -> Mapping[str, object]:
    data = context.config.data
    if data.source == "shapes":
        return _publish(context, _shapes(data.pool_records, "pool", data.seed))
    return _publish(context, _parquet(data.pool, context))


def _test(context: StageContext) -> Mapping[str, object]:
    data = context.config.data
    if data.source == "shapes":
        return _publish(context, _shapes(data.test_records, data.eval_split, data.seed))
    return _publish(context, _parquet(data.test, context))


def _shapes(num: int, split: str, seed: int) -> Iterator[Sequence[Mapping[str, object]]]:
    records = make_records(num, split, seed)  # type: ignore[arg-type]
    for first in range(0, num, BATCH):
        yield [record.row() for record in records[first : first + BATCH]]


def _parquet(path: str, context: StageContext) -> Iterator[pa.Table]:
    for batch in iter_batches(parquet_files(path), "pool", batch_size=BATCH, deep=True):
        if context.config.questions is None:
            check_asked(batch, path)
        yield batch


def _publish(
    context: StageContext, batches: Iterator[Sequence[Mapping[str, object]] | pa.Table]
) -> Mapping[str, object]:
    counts: Counter[str] = Counter()
    with context.draft.write(PART) as path, TableWriter(path, "pool") as writer:
        for batch in batches:
            writer.write(batch)
            rows = batch.to_pylist() if isinstance(batch, pa.Table) else batch
            counts["records"] += len(rows)
            counts.update(f"category/{row['category']}" for row in rows)
    return dict(counts)


def _pool_files(config: Config) -> Sequence[Path]:
    return [] if config.data.source == "shapes" else parquet_files(config.data.pool)


def _test_files(config: Config) -> Sequence[Path]:
    return [] if config.data.source == "shapes" else parquet_files(config.data.test)


POOL = Stage(
    "pool",
    1,
    config_keys=("data.source", "data.pool_records?", "data.seed?", "data.pool?"),
    inputs=(),
    body=_pool,
    files=_pool_files,
    unkeyed=("questions",),  # says whether records without any are refused
)
TEST = Stage(
    "test",
    1,
    config_keys=(
        "data.source",
        "data.test_records?",
        "data.eval_split?",
        "data.seed?",
        "data.test?",
    ),
    inputs=(),
    body=_test,
    files=_test_files,
    unkeyed=("questions",),
)

if __name__ == "__main__":
    sys.exit(stage_command({"pool": POOL, "test": TEST}))
