"""Rows of Parquet and Arrow files, one by one and as they are stored.

The features that the library datasets keeps in the metadata of such files are left alone: they may
lie about the columns.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import UserError
from data.ingest.raw import BadRecordError, Load
from data.tables import guarded, reading

BATCH = 32  # rows of Parquet held at once, with their pictures
ARROW = "Arrow"


def parquet_rows(files: Sequence[Path], start: int) -> Iterator[tuple[str, Load]]:
    """Rows from number `start` on, each with its place."""
    for path in files:
        with open_parquet(path) as file:
            number = 0
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if start >= size:
                    start, number = start - size, number + size
                    continue
                for batch in guarded(path, file.iter_batches(BATCH, row_groups=[group])):
                    for row in range(batch.num_rows):
                        if start:
                            start -= 1
                        else:
                            yield f"{path.name} row {number}", partial(_row, batch, row)
                        number += 1


def open_parquet(path: Path) -> pq.ParquetFile:
    """A file whose columns have different names."""
    with reading(path):
        file = pq.ParquetFile(path)
    try:
        _check_columns(path, file.schema_arrow)
    except UserError:
        file.close()
        raise
    return file


def arrow_rows(files: Sequence[Path], start: int) -> Iterator[Load]:
    """Rows of Arrow streams or files from number `start` on; what is skipped is not read."""
    for path in files:
        batches = _arrow_batches(path)
        while True:
            with reading(path, ARROW):
                batch = next(batches, None)
                if batch is not None and start < batch.num_rows:
                    # Offsets of a damaged file would be followed out of its memory.
                    batch.validate(full=True)
            if batch is None:
                break
            for row in range(start, batch.num_rows):
                yield partial(_row, batch, row)
            start = max(0, start - batch.num_rows)


def count_arrow_rows(files: Sequence[Path]) -> int:
    """Number of rows in all files, from the heads of their batches."""
    total = 0
    for path in files:
        with reading(path, ARROW):
            total += sum(batch.num_rows for batch in _arrow_batches(path))
    return total


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Batches as they lie in the file, which is mapped."""
    size, rows = path.stat().st_size, 0
    with pa.memory_map(str(path)) as source:
        schema, batches = _opened(source)
        _check_columns(path, schema)
        for batch in batches:
            rows += batch.num_rows
            # Columns of nulls take no place, so a few bytes could claim rows without end.
            if rows > 8 * size:
                raise UserError(f"{path} claims {rows} rows in {size} bytes; make it anew")
            yield batch


def _opened(source: pa.NativeFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    try:
        stream = pa.ipc.open_stream(source)
    except (OSError, pa.ArrowInvalid):
        source.seek(0)
        file = pa.ipc.open_file(source)
        return file.schema, (file.get_batch(n) for n in range(file.num_record_batches))
    return stream.schema, iter(stream)


def _check_columns(path: Path, schema: pa.Schema) -> None:
    names = schema.names
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{path} has column {twice[0]!r} twice; leave one of them")


def _row(batch: pa.RecordBatch, number: int) -> dict[str, Any]:
    try:
        found: dict[str, Any] = batch.slice(number, 1).to_pylist()[0]
    except Exception as error:  # days, hours, zones and the like that Python has no value for
        raise BadRecordError("row cannot be read", f"{type(error).__name__}: {error}") from None
    return found
