"""Many iterations in a row, shortened: what is flat and what grows."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import soak
from tests.chaos import Loop

MB = soak.MB
# Says that iterations are registered, and waits until each has been measured.
LOOP = """
import pathlib, sys, time
kept = []
for index in range(1, 5):
    if sys.argv[1] == "leaks":
        kept += [bytearray(b"x") * 40_000_000, open(f"store/{index}", "wb")]
        kept[-1].write(bytes(12_000_000))
    print(f"iteration {index}  register  version {index}", flush=True)
    while not pathlib.Path(f"measured-{index}").exists():
        time.sleep(0.01)
"""


def rows_of(iterations: int, **grown: float) -> list[soak.Row]:
    """Measurements that stay, but for those that an iteration adds so much to."""
    names = [measure.name for measure in soak.MEASURES]
    rows = [dict.fromkeys(names, 7.0) for _ in range(iterations)]
    for index, row in enumerate(rows):
        for name, step in grown.items():
            row[name] += index * step
    return rows


def faults(rows: list[soak.Row]) -> list[str]:
    return [growth.measure.name for growth in soak.judge(rows) if not growth.right]


@pytest.mark.parametrize("iterations", [6, 50])
@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("memory of the loop", 22 * MB),
        ("open files of the loop", 1.0),
        ("memory of Prefect", 6 * MB),
        ("memory of MLflow", 6 * MB),
        ("store", 9 * MB),
        ("Prefect database", 3 * MB),
        ("MLflow database and files", 2 * MB),
    ],
)
def test_a_leak_is_a_fault_of_its_measure_alone(iterations: int, name: str, step: float) -> None:
    assert faults(rows_of(iterations, **{name: step})) == [name]


@pytest.mark.parametrize("iterations", [3, 6, 20, 50])
def test_caches_that_fill_are_no_leak(iterations: int) -> None:
    rows = rows_of(iterations)
    for index, row in enumerate(rows):
        row["memory of the loop"] += 7 * MB * min(index, soak.WARM_UP)
    assert faults(rows) == []


def test_seconds_are_judged_by_many_iterations_only() -> None:
    slower = {"seconds of an iteration": 1.0}
    assert faults(rows_of(6, **slower)) == []
    assert faults(rows_of(50, **slower)) == ["seconds of an iteration"]


def test_fewer_iterations_than_can_be_judged_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        soak.main(["--iterations", "2"])
    assert "give 3 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("does", "wrong"),
    [("leaks", ["memory of the loop", "open files of the loop", "store"]), ("holds", [])],
)
def test_what_a_process_leaks_is_measured(
    does: str, wrong: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, counted = Loop(tmp_path, [sys.executable, "-c", LOOP, does]), []
    loop.store.mkdir()
    server = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    servers = dict.fromkeys(("prefect", "mlflow"), SimpleNamespace(pid=server.pid))
    measure = soak.measure

    def measured(loop: Loop, pid: int) -> soak.Row:
        counted.append(measure(loop, pid))
        (tmp_path / f"measured-{len(counted)}").touch()
        return counted[-1]

    monkeypatch.setattr(soak, "running", lambda state: servers)
    monkeypatch.setattr(soak, "measure", measured)
    try:
        rows, code = soak.watch(loop, 4, tmp_path / "log")
    finally:
        server.communicate(b"\n")
    assert (code, len(rows)) == (0, 4)
    assert faults(rows) == wrong


@pytest.mark.slow
def test_nothing_grows_beyond_what_is_documented() -> None:
    assert soak.main(["--iterations", "8"]) == 0
