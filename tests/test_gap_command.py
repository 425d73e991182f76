"""The gap from the command line: any checkpoint on any pool."""

from pathlib import Path

import pytest
from stage_inputs import QUICK

from data.shapes.records import make_records
from data.tables import read_table, write_table
from evals.checkpoints import open_checkpoint
from evals.gap import main

BASE = "models/assets/shapes/base"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "pool.parquet"
    write_table(path, "pool", [record.row() for record in make_records(14, "validation", 0)])
    return path


def measure(pool: Path, to: Path, *more: str) -> int:
    given = ["--checkpoint", BASE, "--pool", str(pool), "--to", str(to), "--config", str(QUICK)]
    return main([*given, *more])


def test_a_measurement_that_lost_a_part_ends_with_the_same_tables(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And it does the lost part alone; another checkpoint or judge needs another folder."""
    to = tmp_path / "out"
    assert measure(pool, to) == 0
    table = capsys.readouterr().out
    assert "gap" in table
    assert "type/color" in table
    assert "judged by the pixel oracle" in table
    metrics, answers = (to / name for name in ("metrics.parquet", "answers"))
    before = read_table(metrics, "metrics")
    parts = sorted(answers.iterdir())
    kept, lost = parts
    stamp = kept.stat().st_mtime_ns
    for path in (to / "manifest.json", metrics, lost):
        path.unlink()
    assert measure(pool, to) == 0
    assert capsys.readouterr().out == table
    assert read_table(metrics, "metrics").equals(before)
    assert lost.exists()
    assert kept.stat().st_mtime_ns == stamp
    assert measure(pool, to, "--judge", BASE) == 2
    assert "judge was 'oracle'" in capsys.readouterr().err


def test_a_checkpoint_that_is_none_and_a_pool_without_questions_are_refused(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure(pool, tmp_path / "a", "--checkpoint", str(tmp_path)) == 2
    assert "is no checkpoint" in capsys.readouterr().err
    rows = read_table(pool, "pool").to_pylist()
    bare = tmp_path / "bare.parquet"
    write_table(bare, "pool", [{**row, "questions": []} for row in rows])
    assert measure(bare, tmp_path / "b") == 2
    assert "it has no questions" in capsys.readouterr().err


def test_digests_of_checkpoints_follow_their_content(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    one = open_checkpoint(tmp_path).digest
    (tmp_path / "weights").write_text("1")
    assert open_checkpoint(tmp_path).digest != one
