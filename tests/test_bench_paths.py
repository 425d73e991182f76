"""The hot paths beside the straightforward way: at a small size both sides give the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import workers
from bench.compare import Comparison, Measured
from bench.growth import Growth
from bench.paths import PATHS, TINY, agreement
from bench.streams import STAGES, measure
from core.runtime import peak_memory_bytes
from tasks import sample, score

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", [name for name in PATHS if PATHS[name].agree > 0])
def test_both_sides_give_the_same(name: str) -> None:
    path = PATHS[name]
    build = path.check or path.build
    ours, straight = (build(TINY, side)() for side in ("ours", "plain"))
    assert agreement(path, ours, straight) == 1.0
    assert agreement(path, ours + 1, straight) == 0.0


def test_all_of_it_runs_at_a_small_size(tmp_path: Path) -> None:
    command = ["-m", "bench", "--scale", "tiny", "--runs", "1", "--to", str(tmp_path)]
    paths = ["--paths", "pair-step", "--growth", "tokens of captions", "records paired"]
    done = subprocess.run(
        [sys.executable, *command, *paths], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "performance.md").read_text(encoding="utf-8")
    assert table in done.stdout
    assert "| a Pair-DPO step |" in table
    document = json.loads((tmp_path / "performance.json").read_text(encoding="utf-8"))
    assert document["paths"]["pair-step"]["agree"] == 1.0
    assert document["growth"]["records paired"]["sizes"] == [100, 200]
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_every_stage_streams_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    # It puts stubs in their place, which must not stay.
    for module, name in ((sample, "load_model"), (score, "load_model"), (score, "CaptionScorer")):
        monkeypatch.setattr(module, name, getattr(module, name))
    for stage in STAGES:
        assert measure(stage, 50)["records"] == 50


def test_a_stage_runs_in_so_many_processes() -> None:
    row = workers.measure(workers.STAGES["sample-captions"], 6, 1)
    assert row["records"] == 6
    assert row["cpu_seconds"] > 0


def test_ratios_and_exponents() -> None:
    one = Comparison("pair-step", Measured([1.0, 3.0, 2.0], 0, 10), Measured([8.0], 0, 40), 1.0)
    assert (one.faster, one.leaner, one.equal) == (4.0, 4.0, True)
    assert not Comparison("pair-step", one.ours, one.plain, 0.99).equal
    assert Growth("g", [1, 2, 4], [3.0, 12.0, 48.0]).exponent == pytest.approx(2.0)


def test_peak_memory_is_that_of_the_process_itself() -> None:
    held = bytearray(300 * 2**20)
    script = "from core.runtime import peak_memory_bytes; print(peak_memory_bytes())"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 200 * 2**20 < len(held) <= peak_memory_bytes()
