"""Reading and writing tables as Parquet in batches, checked both ways."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from core.errors import UserError
from core.files import writing_to
from core.names import is_hidden
from data.checks import check_schema, check_unique, check_values
from data.pictures import rgb
from data.schemas import METADATA_KEY, arrow_schema, table_named

ROW_GROUP = 256  # rows; bounds the memory of readers and writers
GROUP_BYTES = 128 << 20  # which fewer rows of large pictures may reach

Rows: TypeAlias = pa.Table | Sequence[Mapping[str, Any]]
Paths: TypeAlias = str | Path | Sequence[str | Path]


class TableWriter:
    """Writes one Parquet file in batches; use as a context manager.

    Values are checked as they come, keys for uniqueness over the whole file at the end; `deep`
    decodes images, which a caller that has done so can spare.
    """

    def __init__(self, path: str | Path, name: str, deep: bool = True) -> None:
        self._path, self._name, self._deep = Path(path), name, deep
        self._schema = arrow_schema(name)
        self._waiting: list[pa.Table] = []
        with writing_to(path):
            self._writer = pq.ParquetWriter(self._path, self._schema)

    def write(self, rows: Rows) -> None:
        """Add rows (a table, or dicts with every column); UserError names the first bad one."""
        table = _as_table(rows, self._name, self._schema)
        check_values(self._name, table, deep=self._deep)
        self._waiting.append(table)
        num_bytes = sum(waiting.nbytes for waiting in self._waiting)
        if (
            sum(waiting.num_rows for waiting in self._waiting) >= ROW_GROUP
            or num_bytes >= GROUP_BYTES
        ):
            self._flush()

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with writing_to(self._path):
            if kind is None:
                self._flush()
            self._writer.close()
        if kind is None:
            _check_keys([self._path], self._name)

    def _flush(self) -> None:
        if self._waiting:
            with writing_to(self._path):
                self._writer.write_table(pa.concat_tables(self._waiting), row_group_size=ROW_GROUP)
            self._waiting.clear()


def write_table(path: str | Path, name: str, rows: Rows) -> None:
    """Write a whole table at once."""
    with TableWriter(path, name) as writer:
        writer.write(rows)


def iter_batches(
    paths: Paths,
    name: str,
    columns: Sequence[str] | None = None,
    batch_size: int = ROW_GROUP,
    deep: bool = False,
) -> Iterator[pa.Table]:
    """Yield tables of at most `batch_size` rows from the files in order; `deep` decodes images.

    Schemas and keys of all files are checked before the first batch, values with each batch.
    """
    files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    wanted = tuple(columns or (column.name for column in table_named(name).columns))
    for file in files:
        with _open(file) as parquet:
            check_schema(name, parquet.schema_arrow, wanted, str(file))
    _check_keys(files, name)
    for file in files:
        with _open(file) as parquet:
            for batch in guarded(file, parquet.iter_batches(batch_size, columns=list(wanted))):
                table = pa.Table.from_batches([batch]).select(wanted)
                check_values(name, table, deep=deep, where=str(file))
                yield table


def read_table(
    paths: Paths, name: str, columns: Sequence[str] | None = None, deep: bool = False
) -> pa.Table:
    """Read whole files into one table, checked like `iter_batches`."""
    tables = list(iter_batches(paths, name, columns, deep=deep))
    if tables:
        return pa.concat_tables(tables)
    empty = arrow_schema(name).empty_table()
    return empty if columns is None else empty.select(list(columns))


def count_rows(paths: Iterable[str | Path]) -> int:
    """Number of rows in all files, from their footers."""
    total = 0
    for path in paths:
        with _open(Path(path)) as parquet:
            total += parquet.metadata.num_rows
    return total


def stored_table(path: str | Path) -> str:
    """The name of the table that a file of ours holds; empty for one that does not say."""
    with _open(Path(path)) as parquet:
        metadata = (parquet.schema_arrow.metadata or {}).get(METADATA_KEY, b"{}")
    name: str = json.loads(metadata).get("table", "")
    return name


def parquet_files(path: str | Path) -> list[Path]:
    """The Parquet file, or those of a folder; UserError if there is none."""
    place = Path(path)
    found = sorted(place.glob("*.parquet")) if place.is_dir() else [place]
    files = [file for file in found if not (place.is_dir() and is_hidden(file.name))]
    if not files or not files[0].is_file():
        raise UserError(f"{path} has no Parquet file; give a .parquet file or a folder of them")
    return files


def encode_image(image: Image.Image) -> dict[str, Any]:
    """A PIL image as the value of an image column (lossless PNG)."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def image_row(
    record_id: str, sample: int, image: Mapping[str, Any], drawn: Any, sampler: str, seed: int
) -> dict[str, Any]:
    """A row of table `images`: an encoded picture, and the numbers that it was drawn as."""
    return {
        "record_id": record_id,
        "sample": sample,
        "image": image,
        "tokens": drawn.ravel().tolist(),
        "sampler": sampler,
        "seed": seed,
    }


def decode_image(value: Mapping[str, Any]) -> Image.Image:
    """The value of an image column as an RGB PIL image; PictureError if it is none."""
    return rgb(value["bytes"])


def guarded(path: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches of a Parquet file; UserError where one cannot be read."""
    while True:
        with reading(path):
            batch = next(batches, None)
            if batch is not None:
                batch.validate(full=True)  # of texts, which would fail only where they are read
        if batch is None:
            return
        yield batch


@contextmanager
def reading(path: Path, kind: str = "Parquet") -> Iterator[None]:
    """UserError for what a damaged file makes of reading it inside of the block."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"table file {path} does not exist; give a {kind} file") from None
    # Arrow's own errors are of these types, and those of file names and texts that it decodes.
    except (OSError, pa.ArrowException, ValueError, MemoryError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not a readable {kind} file ({reason}); make it anew") from None


def _open(path: Path) -> pq.ParquetFile:
    with reading(path):
        return pq.ParquetFile(path)


def _check_keys(files: Sequence[Path], name: str) -> None:
    key = list(table_named(name).key)
    parts = []
    for file in files:
        with _open(file) as parquet:
            check_schema(name, parquet.schema_arrow, tuple(key), str(file))
            # Metadata may differ between files; only the columns matter here.
            with reading(file):
                keys = parquet.read(columns=key)
                keys.validate(full=True)
            parts.append(keys.replace_schema_metadata(None))
    if parts:
        where = str(files[0]) if len(files) == 1 else f"{name} in {len(files)} files"
        check_unique(name, pa.concat_tables(parts), where)


def _as_table(rows: Rows, name: str, schema: pa.Schema) -> pa.Table:
    if isinstance(rows, pa.Table):
        check_schema(name, rows.schema, tuple(schema.names), name)
        return rows.select(schema.names).replace_schema_metadata(schema.metadata)
    for row in rows:
        unknown = set(row) - set(schema.names)
        if unknown:
            raise UserError(
                f"{name}: column {sorted(unknown)[0]!r} is unknown; known: "
                f"{', '.join(schema.names)}"
            )
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        try:
            columns.append(pa.array(values, type=field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise UserError(f"{name}: column {field.name} takes {field.type}: {error}") from None
    return pa.Table.from_arrays(columns, schema=schema)
