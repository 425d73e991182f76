"""A self-play on the process pool of a real server: lost runs, GPU slots, a killed parent."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import yaml

from flows.servers import Urls, client_environment, ensure_servers, stop_all
from tests.cluster import until
from tests.limits import HANGS_SECONDS, free_port
from tests.loops import QUICK, play, quick
from tests.screenshots import Document, ask, logged_in

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
# Samples go to a queue of GPU stages, one at a time, although no GPU is needed: device is cpu.
COMPUTE = {
    "fan_out": 3,
    "lost_seconds": 45,
    "gpu_slots": 1,
    "stages": {"sample-images": {"gpus": 1}, "score-images": {"gpus": 1}},
}
STEPS = 48  # so that sampling takes a while
# One that draws nothing, since so many steps would take long there, too.
BENCHMARKS = [{"name": "shapes-pope", "folder": None, "limit": 24, "judges": {}}]
PLAY = """
import sys
from flows.self_play import self_play
state = self_play(config=sys.argv[1], iterations=1, pool="process", return_state=True)
print(state.type.value, state.message)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Urls]]:
    """A folder with a config, servers, and the deployments of its stages."""
    folder = tmp_path_factory.mktemp("pools")
    urls = ensure_servers(folder / ".hermesflow", free_port(), free_port())
    config = yaml.safe_load(QUICK.read_text(encoding="utf-8"))
    config["store"], config["tracking"]["enabled"] = str(folder / "store"), False
    config["runtime"]["threads"] = 1
    config["compute"] |= COMPUTE
    config["sampling"]["images"]["steps"] = STEPS
    config["benchmarks"] = BENCHMARKS
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    deploy = ["-m", "flows.cli", "deploy", "--pool", "process"]
    assert python(folder, urls, "deploy.log", *deploy, str(folder / "config.yaml")).wait(180) == 0
    with logged_in(urls):
        yield folder, urls
    stop_all(folder / ".hermesflow")


def python(folder: Path, urls: Urls, log: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start Python with the way to the servers; what it says goes to a file."""
    environment = {**os.environ, **client_environment(urls, folder / ".hermesflow")}
    with open(folder / log, "wb") as output:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def worker(folder: Path, urls: Urls, log: str) -> subprocess.Popen[bytes]:
    start = ["-m", "prefect", "worker", "start", "--pool", "process", "--type", "process"]
    return python(folder, urls, log, *start, "--limit", "2")


def runs(urls: Urls, stage: str) -> list[Document]:
    body = {"flows": {"name": {"any_": [stage]}}, "sort": "EXPECTED_START_TIME_ASC"}
    found: list[Document] = ask(f"{urls.prefect_api}/flow_runs/filter", body)
    return found


def end_family(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started at once, as when a machine is lost."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.send_signal(signal.SIGKILL)
    process.wait(30)


def test_lost_machine_and_killed_parent_cost_time_and_nothing_else(
    place: tuple[Path, Urls], tmp_path: Path
) -> None:
    folder, urls = place
    config = str(folder / "config.yaml")
    first = worker(folder, urls, "worker.log")
    parent = python(folder, urls, "parent.log", "-c", PLAY, config)

    def sampling() -> list[Document]:
        return [r for r in runs(urls, "sample-images") if r["state_type"] == "RUNNING"]

    try:
        until(sampling, "image samples in the making")
        end_family(parent)
        # A second parent goes on with what the first has submitted.
        parent = python(folder, urls, "second.log", "-c", PLAY, config)
        time.sleep(3.0)
        until(sampling, "image samples in the making")
        end_family(first)
        first = worker(folder, urls, "other.log")
        parent.wait(2 * HANGS_SECONDS)
    finally:
        for process in (parent, first):
            if process.poll() is None:
                end_family(process)
    output = (folder / "second.log").read_text(encoding="utf-8")
    assert "COMPLETED" in output, output
    assert "going on with run" in output
    samples = runs(urls, "sample-images")
    crashed = [run for run in samples if run["state_type"] == "CRASHED"]
    assert crashed
    assert all("no sign of life" in run["state"]["message"] for run in crashed)
    # The second parent asks for every shard again; what was there is not made again.
    done = [run["parameters"]["shard"] for run in samples if run["state_type"] == "COMPLETED"]
    assert {tuple(shard) for shard in done} == {(0, 3), (1, 3), (2, 3)}
    same(folder / "store", tmp_path / "store")
    overlap_nowhere(runs(urls, "score-images"))


def same(shared: Path, alone: Path) -> None:
    """Both stores hold the same artifacts with the same contents."""
    play(quick(alone, sampling__images__steps=STEPS, benchmarks=BENCHMARKS))
    found = [
        {
            (m["stage"], m["key"]): m["digest"]
            for path in store.glob("*/*/manifest.json")
            if (m := json.loads(path.read_text(encoding="utf-8")))["stage"] != "gate"
        }
        for store in (shared, alone)
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 16


def overlap_nowhere(gpu_runs: list[Document]) -> None:
    """One GPU slot: no run begins before the one before has ended."""
    times = sorted((run["start_time"], run["end_time"]) for run in gpu_runs)
    assert len(times) == 3
    assert all(end <= start for (_, end), (start, _) in pairwise(times))
