"""The speed benchmark runs at a small size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import gpu
from bench.__main__ import main as compare_main
from bench.paths import PATHS, TINY, agreement

ROOT = Path(__file__).parent.parent


def test_every_part_runs_at_a_small_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "speed.json"
    command = ["--size", "small", "--device", "cpu", "--runs", "1", "--json", str(file)]
    assert gpu.main(command) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["part"] for row in rows] == list(gpu.PARTS)
    assert {row["part"]: row["error"] for row in rows if row["error"]} == {}
    # Of what a matrix product reached a moment ago: above 1 where others were at work meanwhile.
    assert all(0 < row["mfu"] < float("inf") for row in rows)
    table = file.with_suffix(".md").read_text()
    assert table in capsys.readouterr().out
    assert "steps/s" in table


def test_a_part_that_fails_says_why_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(size: object, device: str) -> gpu.Prepared:
        raise RuntimeError("no memory\nand more")

    monkeypatch.setitem(gpu.PARTS, "train", fails)  # type: ignore[call-overload]
    gpu.main(["--size", "small", "--device", "cpu", "--parts", "train", "rate", "--runs", "1"])
    shown = capsys.readouterr().out
    assert "| train | RuntimeError: no memory |" in shown
    assert "TFLOP/s" in shown


@pytest.mark.parametrize("name", [name for name in PATHS if PATHS[name].agree > 0])
def test_both_sides_give_the_same(name: str) -> None:
    path = PATHS[name]
    ours, straight = (call() for call in (path.check or path.build)(TINY))
    assert agreement(path, ours, straight) == 1.0
    assert agreement(path, ours + 1, straight) == 0.0


def test_sides_are_compared_in_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--scale", "tiny", "--runs", "1", "--to", str(tmp_path), "--paths", "pair-step"]
    assert compare_main(command) == 0
    table = (tmp_path / "performance.md").read_text(encoding="utf-8")
    assert "| a Pair-DPO step |" in table
    assert table in capsys.readouterr().out
    document = json.loads((tmp_path / "performance.json").read_text(encoding="utf-8"))
    assert document["paths"]["pair-step"]["agree"] == 1.0


def test_it_needs_no_more_than_torch_and_transformers() -> None:
    code = (
        "import sys\n"
        "for name in ('pydantic', 'pyarrow', 'pandas', 'datasets', 'accelerate', 'prefect'):\n"
        "    sys.modules[name] = None\n"
        "import bench.gpu\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
