"""Tables: schemas, checks on write and read, batches, and Hugging Face features."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from core.errors import UserError
from data import tables
from data.checks import check_table
from data.schemas import TABLES, arrow_schema
from data.tables import (
    TableWriter,
    count_rows,
    decode_image,
    encode_image,
    iter_batches,
    read_table,
    write_table,
)

PIXELS = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
IMAGE = encode_image(Image.fromarray(PIXELS))
YES_NO = {"type": "shape", "question": "Is it red?", "choices": ["yes", "no"], "answer": "no"}


def record(number: int = 0, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "record_id": f"r{number}",
        "image": IMAGE,
        "prompt": "a red circle",
        "caption": "a red circle",
        "references": ["one red circle"],
        "category": "single object",
        "composition": "seen",
        "questions": [YES_NO, {**YES_NO, "choices": ["1", "2", "3"], "answer": "3"}],
    }
    return row | changes


def score(**changes: Any) -> dict[str, Any]:
    row = {"record_id": "r0", "sample": 0, "hard": 1.0, "soft": 0.5, "geometric": 0.4}
    return row | {"answers": []} | changes


def generated(**changes: Any) -> dict[str, Any]:
    row = {"record_id": "r0", "sample": 0, "image": IMAGE, "tokens": [1, 2]}
    return row | {"sampler": "{}", "seed": 7} | changes


def refusal(path: Path, name: str, *rows: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        write_table(path / "t.parquet", name, rows)
    return str(error.value)


def test_pool_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "pool.parquet"
    write_table(path, "pool", [record(number) for number in range(3)])
    table = read_table(path, "pool", deep=True)
    assert table.to_pylist() == [record(number) for number in range(3)]
    assert table.schema.equals(arrow_schema("pool"))
    assert np.array_equal(np.asarray(decode_image(table["image"][0].as_py())), PIXELS)
    assert count_rows([path, path]) == 6


def test_datasets_shows_images(tmp_path: Path) -> None:
    path = tmp_path / "pool.parquet"
    write_table(path, "pool", [record()])
    loaded = datasets.load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    row = loaded[0]
    assert isinstance(row["image"], Image.Image)
    assert np.array_equal(np.asarray(row["image"]), PIXELS)
    assert row["questions"][1]["choices"] == ["1", "2", "3"]


@pytest.mark.parametrize("name", TABLES)
def test_features_agree_with_the_arrow_schema(name: str) -> None:
    schema = arrow_schema(name)
    features = datasets.Features.from_arrow_schema(schema)
    assert features.arrow_schema.equals(schema)
    check_table(name, schema.empty_table())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"caption": ""}, "record_id 'r0', column caption: the value is empty"),
        ({"prompt": " \n"}, "record_id 'r0', column prompt: the value is empty"),
        ({"caption": None}, "record_id 'r0', column caption: the value is null"),
        ({"record_id": ""}, "column record_id: the value is empty"),
        ({"references": ["x", ""]}, "column references: the value is empty"),
        ({"references": ["x", None]}, "column references: the value is null"),
        ({"image": None}, "column image: the value is null"),
        ({"image": {"bytes": b"", "path": "x.png"}}, "column image: the value is empty"),
        ({"image": {"bytes": b"GIF89", "path": "x.png"}}, "column image: the image cannot be"),
        ({"questions": None}, "column questions: the value is null"),
        ({"questions": [YES_NO, None]}, "column questions: the value is null"),
        ({"questions": [{**YES_NO, "question": ""}]}, "a question is empty"),
        ({"questions": [{**YES_NO, "answer": "maybe"}]}, "answer 'maybe'; give at least 2"),
        ({"questions": [{**YES_NO, "choices": ["no"]}]}, "has choices ['no']"),
        ({"questions": [{**YES_NO, "choices": ["no", "no"]}]}, "give at least 2 different"),
        ({"questions": [{**YES_NO, "choices": []}]}, "give at least 2 different"),
        ({"caption": 3}, "column caption takes string"),
        ({"colour": "red"}, "column 'colour' is unknown"),
    ],
)
def test_bad_pool_record_is_named(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    message = refusal(tmp_path, "pool", record(1), record(0, **changes))
    assert expected in message
    assert message.startswith("pool: ")


def test_numbers_stay_in_range(tmp_path: Path) -> None:
    for value in (-0.01, 1.01, float("nan"), float("inf")):
        message = refusal(tmp_path, "image_scores", score(hard=value))
        assert "record_id 'r0', column hard: the value" in message
        assert "allowed: from 0 to 1" in message
    row = {"record_id": "r0", "sample": 0, "score": -0.5}
    write_table(tmp_path / "s.parquet", "caption_scores", [row])
    assert "allowed: from -1 to 1" in refusal(tmp_path, "caption_scores", {**row, "score": -2.0})
    assert "column tokens: the value -1" in refusal(tmp_path, "images", generated(tokens=[3, -1]))
    write_table(tmp_path / "t.parquet", "images", [generated(seed=2**63 - 1)])
    assert read_table(tmp_path / "t.parquet", "images")["seed"].to_pylist() == [2**63 - 1]


def test_duplicate_keys_are_refused_within_and_across_batches_and_files(tmp_path: Path) -> None:
    assert "2 rows share record_id 'r0'" in refusal(tmp_path, "pool", record(), record())
    with (
        pytest.raises(UserError, match="2 rows share record_id 'r0', sample 0"),
        TableWriter(tmp_path / "s.parquet", "image_scores") as writer,
    ):
        writer.write([score()])
        writer.write([score(sample=1)])
        writer.write([score()])
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path in paths:
        write_table(path, "image_scores", [score()])
    with pytest.raises(UserError, match="image_scores in 2 files: 2 rows share record_id 'r0'"):
        next(iter_batches(paths, "image_scores"))


def test_batches_bound_the_rows_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    with TableWriter(path, "image_scores") as writer:
        for sample in range(300):
            writer.write([score(sample=sample)])
    sizes = [batch.num_rows for batch in iter_batches(path, "image_scores", batch_size=100)]
    assert sum(sizes) == 300
    assert max(sizes) <= 100
    assert pq.ParquetFile(path).metadata.num_row_groups == 2
    part = read_table(path, "image_scores", columns=["soft", "record_id"])
    assert part.column_names == ["soft", "record_id"]


def test_files_are_checked_on_reading(tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    good = pa.Table.from_pylist([record(0), record(1)], schema=arrow_schema("pool"))
    blank = good.set_column(3, "caption", pa.array(["x", ""]))
    pq.write_table(blank, path)
    with pytest.raises(UserError, match=r"bad\.parquet: record_id 'r1', column caption"):
        read_table(path, "pool")
    broken = [record(0), record(1, image={"bytes": b"no image", "path": None})]
    pq.write_table(pa.Table.from_pylist(broken, schema=arrow_schema("pool")), path)
    read_table(path, "pool")
    with pytest.raises(UserError, match=r"record_id 'r1', column image: the image cannot be"):
        read_table(path, "pool", deep=True)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(UserError, match="does not exist"):
        read_table(path, "pool")
    path.write_bytes(b"not parquet")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read_table(path, "pool")
    write_table(path, "image_scores", [score()])
    with pytest.raises(UserError, match="holds table 'image_scores' of version 1, expected 'pool'"):
        read_table(path, "pool")
    plain = pa.table({"record_id": ["a"], "sample": [0]})
    pq.write_table(plain, path)
    with pytest.raises(UserError, match="column sample has type int64"):
        read_table(path, "caption_scores")
    with pytest.raises(UserError, match="column score is missing"):
        read_table(path, "caption_scores", columns=["record_id", "score"])
    with pytest.raises(UserError, match="has no column 'nope'; it has: record_id"):
        read_table(path, "caption_scores", columns=["nope"])
    with pytest.raises(UserError, match="table 'pools' is unknown; known: pool"):
        read_table(path, "pools")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be written"):
        write_table(tmp_path / "file/t.parquet", "image_scores", [score()])


def test_large_pictures_make_small_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "GROUP_BYTES", 500)
    path = tmp_path / "pool.parquet"
    with tables.TableWriter(path, "pool") as writer:
        for number in range(6):
            writer.write([record(number)])
    assert 1 < pq.ParquetFile(path).num_row_groups <= 6
    assert read_table(path, "pool").num_rows == 6


def test_slices_are_checked_from_their_own_start() -> None:
    rows = [record(0, caption=""), record(1), record(2, questions=[{**YES_NO, "answer": "maybe"}])]
    table = pa.Table.from_pylist(rows, schema=arrow_schema("pool"))
    check_table("pool", table.slice(1, 1), deep=True)
    with pytest.raises(UserError, match="record_id 'r2', column questions"):
        check_table("pool", table.slice(1))
