"""Pool rows into Parquet parts of bounded size, each of which appears whole."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from core.files import TemporaryFolder, put_in_place, writing_to
from data.tables import TableWriter

PART_ROWS = 4096
PART_BYTES = 512 << 20
BATCH_ROWS = 64
BATCH_BYTES = 32 << 20


class PartWriter:
    """Writes `<prefix>00000.parquet` and so on; use as a context manager.

    Rows must hold pictures that have been decoded. An error drops the part in the making.
    """

    def __init__(self, scratch: TemporaryFolder, prefix: Path, first: int = 0) -> None:
        self.next_part = first
        self._scratch, self._prefix = scratch, prefix
        self._open: tuple[Path, TableWriter] | None = None
        self._rows: list[Mapping[str, Any]] = []
        self._waiting = self._num_rows = self._num_bytes = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row of the table `pool`."""
        size = len(row["image"]["bytes"])
        self._rows.append(row)
        self._waiting += size
        self._num_rows += 1
        self._num_bytes += size
        if len(self._rows) >= BATCH_ROWS or self._waiting >= BATCH_BYTES:
            self._write()
        if self._num_rows >= PART_ROWS or self._num_bytes >= PART_BYTES:
            self._finish()

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._finish()
        elif self._open is not None:
            path, writer = self._open
            writer.__exit__(kind)
            path.unlink(missing_ok=True)

    def _write(self) -> None:
        if self._open is None:
            path = self._scratch.new_path("part.parquet")
            self._open = path, TableWriter(path, "pool", deep=False).__enter__()
        self._open[1].write(self._rows)
        self._rows, self._waiting = [], 0

    def _finish(self) -> None:
        if self._rows:
            self._write()
        if self._open is None:
            return
        path, writer = self._open
        writer.__exit__(None)
        target = part_path(self._prefix, self.next_part)
        with writing_to(target):
            put_in_place(path, target)
        self._open, self._num_rows, self._num_bytes = None, 0, 0
        self.next_part += 1


def part_path(prefix: Path, number: int) -> Path:
    """The place of a part."""
    return prefix.with_name(f"{prefix.name}{number:05d}.parquet")


@contextmanager
def placed(scratch: TemporaryFolder, target: Path) -> Iterator[Path]:
    """A path for a file that appears whole as `target`."""
    with writing_to(target):
        path = scratch.new_path(target.name)
        yield path
        put_in_place(path, target)


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows one by one."""
    for index in range(table.num_rows):
        yield table.slice(index, 1).to_pylist()[0]
