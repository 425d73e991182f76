"""Checks of table contents; every failure names column, record, value and way out."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.errors import UserError
from data.pictures import PictureError, rgb
from data.schemas import IMAGE, METADATA_KEY, VERSION, Column, table_named

# Bytes of a text; a tokenizer would take minutes for what is far above.
MAX_TEXT = 1 << 20


def check_schema(name: str, schema: pa.Schema, columns: tuple[str, ...], where: str) -> None:
    """Raise UserError unless `schema` has these columns with the types of table `name`."""
    metadata = (schema.metadata or {}).get(METADATA_KEY)
    if metadata is not None:
        found = _metadata(metadata)
        if found != {"table": name, "version": VERSION}:
            raise UserError(
                f"{where} holds table {found.get('table')!r} of version {found.get('version')!r}, "
                f"expected {name!r} of version {VERSION}; give the right file or make it anew"
            )
    known = {column.name: column for column in table_named(name).columns}
    for column in columns:
        if column not in known:
            raise UserError(f"{name} has no column {column!r}; it has: {', '.join(known)}")
        if column not in schema.names:
            raise UserError(f"{where}: column {column} is missing; table {name} needs it")
        if schema.names.count(column) > 1:
            raise UserError(f"{where}: column {column} is there twice; leave one of them")
        if schema.field(column).type != known[column].type:
            raise UserError(
                f"{where}: column {column} has type {schema.field(column).type}; "
                f"table {name} needs {known[column].type}"
            )


def _metadata(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def check_table(name: str, table: pa.Table, deep: bool = False, where: str = "") -> None:
    """As `check_values`, and raise UserError if rows share a key."""
    check_values(name, table, deep, where)
    check_unique(name, table, where or name)


def check_values(name: str, table: pa.Table, deep: bool = False, where: str = "") -> None:
    """Raise UserError unless all values of `table` are valid; `deep` decodes every image.

    `table` may hold some columns only; `where` (default: the table name) starts the message.
    """
    where = where or name
    check_schema(name, table.schema, tuple(table.column_names), where)
    for column in table_named(name).columns:
        if column.name in table.column_names:
            problem = _first_problem(name, column, table.column(column.name), deep)
            if problem is not None:
                row, what = problem
                raise UserError(f"{where}: {_row_name(table, row)}, column {column.name}: {what}")


def check_unique(name: str, table: pa.Table, where: str) -> None:
    """Raise UserError if two rows share the key; skipped when a key column is not there."""
    key = list(table_named(name).key)
    if not set(key) <= set(table.column_names):
        return
    counts = table.select(key).group_by(key).aggregate([([], "count_all")])
    if counts.num_rows == table.num_rows:
        return
    repeated = counts.filter(pc.greater(counts["count_all"], 1)).slice(0, 1).to_pylist()[0]
    values = ", ".join(f"{column} {repeated[column]!r}" for column in key)
    raise UserError(
        f"{where}: {repeated['count_all']} rows share {values}; "
        f"keep one row for each ({', '.join(key)})"
    )


def check_asked(table: pa.Table, where: str) -> None:
    """Raise UserError if a record of a pool has no questions, by which images are scored."""
    row = _first(pc.equal(pc.list_value_length(table.column("questions")), 0))
    if row is not None:
        raise UserError(
            f"{where}: {_row_name(table, row)}, column questions: it has no questions; give at "
            "least one with choices and answer, or have them written (config section questions)"
        )


def _row_name(table: pa.Table, row: int) -> str:
    for column in ("record_id", "name"):
        if column in table.column_names:
            return f"{column} {table.column(column)[row].as_py()!r}"
    return f"row {row}"


Problem = tuple[int, str]  # row in the table, what is wrong and the way out


def _first_problem(
    name: str, column: Column, values: pa.ChunkedArray, deep: bool
) -> Problem | None:
    array = values.combine_chunks()
    for rows, leaf in _levels(array, np.arange(len(array)), column.type):
        problem = _first_bad_value(column, rows, leaf)
        if problem is not None:
            return problem
    if name == "pool" and column.name == "questions":
        return _first_bad_question(array)
    if deep and column.type == IMAGE:
        return _first_bad_image(array)
    return None


def _levels(
    array: pa.Array, rows: np.ndarray, kind: pa.DataType
) -> Iterator[tuple[np.ndarray, pa.Array]]:
    """Every nesting level of a column as (row of each value, values), outermost first."""
    yield rows, array
    if pa.types.is_list(kind):
        parents = pc.list_parent_indices(array).to_numpy()
        yield from _levels(pc.list_flatten(array), rows[parents], kind.value_type)
    elif kind == IMAGE:
        yield rows, array.field("bytes")  # the path may be null
    elif pa.types.is_struct(kind):
        for index, child in enumerate(array.flatten()):
            yield from _levels(child, rows, kind.field(index).type)


def _first_bad_value(column: Column, rows: np.ndarray, values: pa.Array) -> Problem | None:
    kind = values.type
    if values.null_count:
        return int(rows[_first(pc.is_null(values))]), "the value is null; give one or drop the row"
    textual = pa.types.is_string(kind) or pa.types.is_binary(kind)
    if column.filled and textual:
        # Captions of blanks are as empty as empty ones.
        trimmed = pc.utf8_trim_whitespace(values) if pa.types.is_string(kind) else values
        index = _first(pc.equal(pc.binary_length(trimmed), 0))
        if index is not None:
            return int(rows[index]), "the value is empty; give one or drop the row"
    if pa.types.is_string(kind):
        index = _first(pc.greater(pc.binary_length(values), MAX_TEXT))
        if index is not None:
            size = len(values[index].as_py().encode())
            return int(rows[index]), f"the text has {size} bytes; give at most {MAX_TEXT}"
    # Whole numbers without bounds are seeds, too large to be compared as floating point.
    bounded = np.isfinite([column.low, column.high]).any()
    if pa.types.is_floating(kind) or (pa.types.is_integer(kind) and bounded):
        inside = pc.and_(pc.greater_equal(values, column.low), pc.less_equal(values, column.high))
        index = _first(pc.invert(inside))
        if index is not None:
            allowed = f"from {column.low:g} to {column.high:g}"
            value = values[index].as_py()
            return int(rows[index]), f"the value {value!r} is out of range; allowed: {allowed}"
    return None


def _first(mask: pa.BooleanArray | pa.ChunkedArray) -> int | None:
    index = pc.index(mask, True).as_py()
    return None if index < 0 else int(index)


def _first_bad_question(questions: pa.Array) -> Problem | None:
    """The first record with a question that cannot be answered."""
    rows = pc.list_parent_indices(questions).to_numpy()
    flat = pc.list_flatten(questions)
    _, texts, choices, answers = flat.flatten()
    index = _first(pc.equal(pc.binary_length(texts), 0))
    if index is not None:
        return int(rows[index]), "a question is empty; give its text or drop it"
    owners = pc.list_parent_indices(choices)
    options = pc.list_flatten(choices)
    seen = _told_apart_by(options)
    pairs = pa.table({"question": owners, "choice": seen}).group_by(["question", "choice"])
    distinct = np.bincount(pairs.aggregate([])["question"].to_numpy(), minlength=len(flat))
    hits = pc.equal(options, pc.take(answers, owners)).to_numpy(zero_copy_only=False)
    found = np.bincount(owners.to_numpy(), weights=hits, minlength=len(flat))
    lengths = pc.list_value_length(choices).to_numpy()
    bad = (distinct < 2) | (distinct != lengths) | (found == 0)
    if not bad.any():
        return None
    index = int(np.argmax(bad))
    question = flat[index].as_py()
    return int(rows[index]), (
        f"question {question['question']!r} has choices {question['choices']} and answer "
        f"{question['answer']!r}; give at least 2 different choices, in more than capitals and "
        "blanks, the answer among them"
    )


def _told_apart_by(texts: pa.Array) -> pa.Array:
    """As `data.questions.told_apart_by`, for all choices of a batch."""
    composed = pc.utf8_normalize(pc.utf8_lower(pc.utf8_normalize(texts, "NFKC")), "NFKC")
    plain = pc.replace_substring_regex(composed, r"\s+", " ")
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(plain, r"[\p{Cc}\p{Cf}]+", ""))


def _first_bad_image(images: pa.Array) -> Problem | None:
    for row, content in enumerate(images.field("bytes")):
        try:
            rgb(content.as_py())
        except PictureError as error:
            return row, f"{error}, or drop the row"
    return None
