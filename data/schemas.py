"""The tables of the pipeline, declared once: columns, ranges, keys and Arrow schemas.

Files carry Hugging Face `datasets` features in their metadata, so that
`datasets.load_dataset("parquet", ...)` yields PIL images.
"""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa

from core.errors import UserError
from data.metrics import METRICS

VERSION = 1
METADATA_KEY = b"hermesflow"

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TOKENS = pa.list_(pa.int32())
QUESTIONS = pa.list_(
    pa.struct(
        [
            ("type", pa.string()),
            ("question", pa.string()),
            ("choices", pa.list_(pa.string())),
            ("answer", pa.string()),
        ]
    )
)
ANSWERS = pa.list_(
    pa.struct(
        [
            ("question", pa.string()),
            ("answer", pa.string()),
            ("prediction", pa.string()),
            ("probability", pa.float32()),
            ("status", pa.string()),
        ]
    )
)


@dataclass(frozen=True)
class Column:
    """One column; `low` and `high` bound its numbers, inside lists too, and exclude NaN."""

    name: str
    type: pa.DataType
    low: float = float("-inf")
    high: float = float("inf")
    filled: bool = False  # an empty string or image is an error


@dataclass(frozen=True)
class Table:
    """One kind of table; rows are unique in the columns of `key`."""

    name: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]


def _text(name: str, *, filled: bool = False) -> Column:
    return Column(name, pa.string(), filled=filled)


def _count(name: str, low: int = 0) -> Column:
    return Column(name, pa.int32(), low=low)


def _score(name: str, low: float = 0.0) -> Column:
    return Column(name, pa.float32(), low=low, high=1.0)


def _image(name: str) -> Column:
    return Column(name, IMAGE, filled=True)


def _tokens(name: str) -> Column:
    return Column(name, TOKENS, low=0)


_ID = _text("record_id", filled=True)
_SEED = Column("seed", pa.int64())
_SAMPLE_KEY = ("record_id", "sample")
_TEMPERATURE = Column("temperature", pa.float32(), low=0)

_TABLES = (
    Table(
        "pool",
        ("record_id",),
        (
            _ID,
            _image("image"),
            _text("prompt", filled=True),
            _text("caption", filled=True),
            Column("references", pa.list_(pa.string()), filled=True),
            _text("category"),
            _text("composition"),
            Column("questions", QUESTIONS),
        ),
    ),
    Table(
        "question_provenance",
        ("record_id", "number"),
        (
            _ID,
            _count("number"),
            _text("question"),
            _text("type"),
            _text("answer"),
            _text("source", filled=True),
            _text("model"),
            _text("prompt_version"),
            _text("entity"),
            _text("reply"),
            _score("f1", low=-1.0),  # below 0: nobody was asked
            Column("kept", pa.bool_()),
            _text("reason"),
        ),
    ),
    Table(
        "captions",
        _SAMPLE_KEY,
        (
            _ID,
            _count("sample"),
            _text("text"),
            _TEMPERATURE,
            _count("top_k"),
            _score("top_p"),
            _SEED,
        ),
    ),
    Table(
        "images",
        _SAMPLE_KEY,
        (
            _ID,
            _count("sample"),
            _image("image"),
            _tokens("tokens"),
            _text("sampler"),
            _SEED,
        ),
    ),
    Table("caption_scores", _SAMPLE_KEY, (_ID, _count("sample"), _score("score", low=-1.0))),
    Table(
        "image_scores",
        _SAMPLE_KEY,
        (
            _ID,
            _count("sample"),
            _score("hard"),
            _score("soft"),
            _score("geometric"),
            Column("answers", ANSWERS),
        ),
    ),
    Table(
        "pairs",
        ("record_id", "iteration"),
        (
            _ID,
            _image("image"),
            _text("prompt", filled=True),
            _text("caption", filled=True),
            _text("caption_win", filled=True),
            _text("caption_lose"),
            _score("caption_win_score", low=-1.0),
            _score("caption_lose_score", low=-1.0),
            _image("image_win"),
            _image("image_lose"),
            _tokens("image_win_tokens"),
            _tokens("image_lose_tokens"),
            _score("image_win_score"),
            _score("image_lose_score"),
            _text("caption_provenance", filled=True),
            _text("image_provenance", filled=True),
            _count("iteration"),
        ),
    ),
    Table(
        "groups",
        ("record_id", "iteration"),
        (
            _ID,
            _image("image"),
            _text("prompt", filled=True),
            Column("captions", pa.list_(pa.string())),
            Column("caption_scores", pa.list_(pa.float32()), low=-1, high=1),
            Column("image_tokens", pa.list_(TOKENS), low=0),
            Column("image_scores", pa.list_(pa.float32()), low=0, high=1),
            _count("iteration"),
        ),
    ),
    Table(
        "ref_logps",
        ("record_id", "branch", "side", "draw_seed"),
        (
            _ID,
            _text("branch", filled=True),
            _text("side", filled=True),  # chosen, rejected, or the number of a group's sample
            Column("draw_seed", pa.int64()),
            Column("logp", pa.float64(), low=-1e30, high=1e30),
            Column("num_tokens", pa.float64(), low=0),  # a mean over the masks of a seed
        ),
    ),
    Table(
        "eval_answers",
        ("record_id", "subject", "sample", "question"),
        (
            _ID,
            _text("subject", filled=True),
            _count("sample"),
            _text("type", filled=True),
            _text("question", filled=True),
            _text("answer", filled=True),
            _text("prediction"),
            _score("right"),
            _score("chance"),
            _text("status", filled=True),
        ),
    ),
    Table(
        "record_metrics",
        ("record_id",),
        (
            _ID,
            _text("category"),
            _text("composition"),
            *(_score(one.name, one.low) for one in METRICS if one.low is not None),
        ),
    ),
    Table(
        "benchmark_items",
        ("item_id", "sample"),
        (
            _text("item_id", filled=True),
            _count("sample"),
            _text("group"),
            _text("unit"),
            _text("text"),
            _text("answer"),
            _text("reply"),
            _text("prediction"),
            _text("status", filled=True),
            Column("cut", pa.bool_()),
            Column("score", pa.float64(), low=0, high=1e30),
        ),
    ),
    Table(
        "benchmark_features",
        ("item_id",),
        (
            _text("item_id", filled=True),
            Column("true", pa.list_(pa.float32()), low=-1e30, high=1e30),
            Column("drawn", pa.list_(pa.float32()), low=-1e30, high=1e30),
        ),
    ),
    Table(
        "metrics",
        ("name", "group"),
        (
            _text("name", filled=True),
            _text("group"),
            Column("value", pa.float64(), low=-1e30, high=1e30),
            Column("low", pa.float64(), low=-1e30, high=1e30),
            Column("high", pa.float64(), low=-1e30, high=1e30),
            Column("count", pa.int64(), low=0),
        ),
    ),
)
TABLES = {table.name: table for table in _TABLES}


def table_named(name: str) -> Table:
    """The declaration of a table; UserError lists the known names."""
    if name not in TABLES:
        raise UserError(f"table {name!r} is unknown; known: {', '.join(TABLES)}")
    return TABLES[name]


@cache
def arrow_schema(name: str) -> pa.Schema:
    """Arrow schema of a table with its version and its `datasets` features as metadata."""
    table = table_named(name)
    schema = with_features(pa.schema([(column.name, column.type) for column in table.columns]))
    own = {METADATA_KEY: json.dumps({"table": name, "version": VERSION}).encode()}
    return schema.with_metadata(own | schema.metadata)


def with_features(schema: pa.Schema) -> pa.Schema:
    """The schema with its `datasets` features as its metadata."""
    features = {field.name: _feature(field.type) for field in schema}
    return schema.with_metadata(
        {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    )


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """The `datasets` feature of an Arrow type."""
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    names = {pa.float32(): "float32", pa.float64(): "float64"}
    return {"dtype": names.get(kind, str(kind)), "_type": "Value"}
