"""Stage `pool` and `test`: the records to learn from and those to be judged on, checked.

The shapes world renders its own; a user's Parquet files are checked row by row and copied, so that
later stages and later runs see exactly these bytes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from core.command import stage_command
from core.config import Config
from core.stage import Stage, StageContext
from data.checks import check_asked
from data.shapes.records import make_records
from data.tables import TableWriter, iter_batches, parquet_files

PART = "part-00000.parquet"
BATCH = 256


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


def _stage(name: str, split: Callable[[Any], str], *keys: str) -> Stage:
    """The stage of records `data.NAME`; `split` is theirs in the shapes world."""

    def body(context: StageContext) -> Mapping[str, object]:
        data: Any = context.config.data
        if data.source == "shapes":
            number = getattr(data, f"{name}_records")
            return _publish(context, _shapes(number, split(data), data.seed))
        return _publish(context, _parquet(getattr(data, name), context))

    def files(config: Config) -> Sequence[Path]:
        shapes = config.data.source == "shapes"
        return [] if shapes else parquet_files(getattr(config.data, name))

    return Stage(
        name,
        1,
        config_keys=("data.source", f"data.{name}_records?", "data.seed?", f"data.{name}?", *keys),
        inputs=(),
        body=body,
        files=files,
        unkeyed=("questions",),  # says whether records without any are refused
    )


POOL = _stage("pool", lambda data: "pool")
TEST = _stage("test", lambda data: str(data.eval_split), "data.eval_split?")

if __name__ == "__main__":
    sys.exit(stage_command({"pool": POOL, "test": TEST}))
