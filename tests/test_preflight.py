"""Preflight: everything wrong with the inputs of a run is said at once, before any work."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.config import Config
from core.errors import UserError
from core.store import Store
from data.schemas import arrow_schema
from data.tables import write_table
from flows import preflight
from flows.preflight import check
from tests.showo_tiny import tiny_model
from tests.stage_inputs import make_config, pool_row

ENCODER = Path(__file__).parent.parent / "models/assets/shapes/caption_encoder"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture
def valid(tmp_path: Path, model: Path) -> dict[str, Any]:
    """Changes that make the config of the tests point to what exists."""
    for name, prefix in (("pool", "p"), ("test", "t")):
        write_table(
            tmp_path / f"{name}.parquet", "pool", [pool_row(f"{prefix}{i}") for i in range(5)]
        )
    shutil.copytree(model, tmp_path / "model")
    shutil.copytree(ENCODER, tmp_path / "encoder")
    return {
        "store": str(tmp_path / "store"),
        "model__checkpoint": str(tmp_path / "model"),
        "scoring__caption_encoder": str(tmp_path / "encoder"),
        "evaluation__judge": "base",
        "data": {
            "source": "parquet",
            "pool": str(tmp_path / "pool.parquet"),
            "test": str(tmp_path / "test.parquet"),
        },
    }


def problem(config: Config) -> str:
    with pytest.raises(UserError) as error:
        check(config)
    return str(error.value)


def pool_problem(path: Path, valid: dict[str, Any], *rows: dict[str, object]) -> str:
    """What is said of a pool that was written without any check."""
    schema = arrow_schema("pool")
    columns = {name: [row[name] for row in rows] for name in schema.names}

    pq.write_table(pa.table(columns, schema=schema), path / "pool.parquet")
    return problem(make_config(**valid))


def test_valid_inputs_pass_and_prepare_the_store(valid: dict[str, Any], tmp_path: Path) -> None:
    check(make_config(**valid))
    Store(valid["store"]).check()
    assert (tmp_path / "store/store.json").is_file()
    shapes = {key: value for key, value in valid.items() if key != "data"}
    check(make_config(**shapes))


def test_a_device_is_looked_for_only_where_stages_run(valid: dict[str, Any]) -> None:
    config = make_config(**valid, runtime__device="cuda:63")  # more than any machine has
    message = problem(config)
    assert message.startswith("runtime.device = 'cuda:63': torch")
    assert "set it to cpu, or to one of them" in message
    check(config, device=False)


def test_all_problems_are_listed_at_once(valid: dict[str, Any]) -> None:
    message = problem(
        make_config(**valid | {"model__checkpoint": "no/model", "scoring__caption_encoder": "none"})
    )
    assert message.startswith("2 problems were found:\n  - model.checkpoint = 'no/model'")
    assert "does not exist (looked for /" in message
    assert "\n  - scoring.caption_encoder = 'none' does not exist" in message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("model/model.safetensors", None, "is missing; give a complete folder"),
        ("model/vq/config.json", None, "is missing; give a complete folder"),
        ("model/model.safetensors", b"abc", "model.checkpoint: .*cannot be read"),
        ("model/config.json", b"{", "model.checkpoint: .*config.json cannot be read"),
        ("encoder/modules.json", b"[]", "does not list modules with a path"),
        ("encoder/model.safetensors", None, "scoring.caption_encoder: .*is missing"),
    ],
)
def test_missing_and_damaged_files_are_named(
    valid: dict[str, Any], tmp_path: Path, name: str, content: bytes | None, expected: str
) -> None:
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=expected):
        check(make_config(**valid))


def test_cut_off_weights_are_noticed(valid: dict[str, Any], tmp_path: Path) -> None:
    weights = tmp_path / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "model.safetensors cannot be read" in problem(make_config(**valid))


@pytest.mark.parametrize("deep_records", [1000, 1])
def test_bad_record_is_named(
    valid: dict[str, Any], tmp_path: Path, deep_records: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What tables refuse, whether or not all pictures are decoded."""
    monkeypatch.setattr(preflight, "DEEP_RECORDS", deep_records)
    for changes, expected in (
        ({"record_id": "p0"}, "2 rows share record_id 'p0'"),
        ({"questions": []}, "record_id 'p1', column questions: it has no questions"),
        ({"image": {"bytes": b"none", "path": None}}, "record_id 'p1', column image: the image"),
    ):
        message = pool_problem(tmp_path, valid, pool_row("p0"), pool_row("p1") | changes)
        assert message.startswith("data.pool: ")
        assert expected in message


def test_tables_without_a_column_or_rows_and_no_tables_are_refused(
    valid: dict[str, Any], tmp_path: Path
) -> None:
    table = pq.read_table(tmp_path / "pool.parquet")
    pq.write_table(table.drop_columns(["questions"]), tmp_path / "pool.parquet")
    assert "column questions is missing" in problem(make_config(**valid))
    pq.write_table(table.slice(0, 0), tmp_path / "pool.parquet")
    assert "has no records; give a table with at least one" in problem(make_config(**valid))
    valid["data"]["pool"] = str(tmp_path / "model")
    message = problem(make_config(**valid))
    assert "data.pool: " in message
    assert "has no Parquet file" in message


def test_held_out_records_in_the_pool_are_refused(valid: dict[str, Any], tmp_path: Path) -> None:
    rows = [pool_row("t0"), pool_row("p1")]
    assert "1 of its 5 records are in data.pool too, 't0' for one" in pool_problem(
        tmp_path, valid, *rows
    )


def test_unusable_store_is_refused(valid: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = problem(make_config(**valid | {"store": str(tmp_path / "file/store")}))
    assert message.startswith("store: ")
    assert "cannot be written" in message
    (tmp_path / "old").mkdir()
    (tmp_path / "old/store.json").write_text('{"schema_version": 0}')
    old = problem(make_config(**valid | {"store": str(tmp_path / "old")}))
    assert "has schema version 0" in old


def test_check_needs_no_torch() -> None:
    code = "import sys, flows.preflight, core.config; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_benchmarks_without_their_files_or_judges_are_named(
    valid: dict[str, Any], tmp_path: Path
) -> None:
    def said(name: str, folder: Path, **judges: str) -> str:
        entry = {"name": name, "folder": str(folder), "limit": None, "judges": judges}
        return problem(make_config(**valid, benchmarks=[entry]))

    assert "benchmarks: pope: folder = " in said("pope", tmp_path / "none")
    assert "does not exist" in said("pope", tmp_path / "none")
    assert "has no *pope_*.json or *pope_*.jsonl; give the folder" in said("pope", tmp_path)
    (tmp_path / "dpg_bench.csv").touch()
    missing = said("dpg", tmp_path, judge=str(tmp_path / "nobody"))
    assert "benchmarks: dpg: judges.judge = " in missing
    entry = {"name": "dpg", "folder": str(tmp_path), "limit": None, "judges": {"judge": "self"}}
    check(make_config(**valid, benchmarks=[entry]))
