"""Tables of the store as datasets of an MLflow run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow as pa

from core.artifact import ArtifactRef
from data.schemas import IMAGE, table_named

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

DIGEST = 36  # characters of a digest that MLflow stores
CONTEXT = "mlflow.data.context"  # the tag that its pages show
SCALARS = {
    pa.string(): "string",
    pa.binary(): "binary",
    pa.int32(): "integer",
    pa.int64(): "long",
    pa.float32(): "float",
    pa.float64(): "double",
}


@dataclass(frozen=True)
class InputTable:
    """A table that a run reads: what it is called, what for, its artifact, schema and size."""

    name: str
    use: str
    ref: ArtifactRef
    schema: str
    rows: int


def as_datasets(tables: Sequence[InputTable]) -> list[DatasetInput]:
    """MLflow's form, with the digest of the artifact, cut to what fits, and its URI as source."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [
        DatasetInput(
            Dataset(
                name=table.name,
                digest=table.ref.digest[:DIGEST],
                source_type=urlsplit(table.ref.uri).scheme or "file",
                source=json.dumps({"uri": table.ref.uri}),
                schema=_schema(table.schema),
                profile=json.dumps({"num_rows": table.rows, "digest": table.ref.digest}),
            ),
            [InputTag(CONTEXT, table.use)],
        )
        for table in tables
    ]


def _schema(name: str) -> str:
    columns = [
        {"name": column.name, "required": True, **_kind(column.type)}
        for column in table_named(name).columns
    ]
    return json.dumps({"mlflow_colspec": columns})


def _kind(kind: pa.DataType) -> dict[str, Any]:
    """An Arrow type in the JSON of MLflow's signatures."""
    if kind == IMAGE:
        return {"type": "binary"}
    if pa.types.is_list(kind):
        return {"type": "array", "items": _kind(kind.value_type)}
    if pa.types.is_struct(kind):
        properties = {field.name: {"required": True, **_kind(field.type)} for field in kind}
        return {"type": "object", "properties": properties}
    return {"type": SCALARS[kind]}
