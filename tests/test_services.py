"""Prefect and MLflow that die, come back or never were there, while a self-play runs."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from flows.servers import running
from tests import chaos
from tests.chaos import Loop, check_services, prepared, read_ends
from tests.cluster import until
from tests.driver import digests, finish, start
from tests.limits import free_port, run_python
from tests.loops import Finished
from tests.screenshots import ask
from tracking.connection import find_problem

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("services")]  # servers of one worker
OFF, BACK, MISSED = "tracking is off", "MLflow answers again", "MLflow has missed"


class Mlflow:
    """An MLflow server of its own, that a test kills and starts."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.port = folder, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-P", "-m", "mlflow", "server", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        with open(self._folder / "mlflow.log", "ab") as log:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(lambda: not find_problem(self.address), "an MLflow server", 120)

    def kill(self) -> None:
        if self._process is not None:
            family = [*psutil.Process(self._process.pid).children(recursive=True)]
            os.killpg(self._process.pid, signal.SIGKILL)
            for member in family:
                if member.is_running():
                    member.kill()
            self._process.wait()
            self._process = None

    def told(self) -> dict[str, int]:
        """Points of the training loss of each run, none twice."""
        client = MlflowClient(tracking_uri=self.address)
        experiment = client.get_experiment_by_name("hermesflow-quick")
        assert experiment is not None
        points = {}
        for run in client.search_runs([experiment.experiment_id]):
            assert run.info.status == "FINISHED"
            assert run.info.run_name not in points
            for name in run.data.metrics:
                history = client.get_metric_history(run.info.run_id, name)
                steps = Counter(p.step for p in history)
                assert name.startswith("system/") or max(steps.values()) == 1, (name, steps)
            losses = client.get_metric_history(run.info.run_id, "train/loss")
            points[run.info.run_name] = len(losses)
        return points

    def versions(self) -> int:
        """Registered versions, none twice."""
        client = MlflowClient(tracking_uri=self.address)
        keys = [v.tags["hermesflow.key"] for v in client.search_model_versions()]
        assert len(keys) == len(set(keys))
        return len(keys)


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[Mlflow]:
    server = Mlflow(tmp_path)
    yield server
    server.kill()


@contextmanager
def stopped(loop: subprocess.Popen[str]) -> Iterator[None]:
    """Let the loop stand still, as it would be over before a server has started."""
    loop.send_signal(signal.SIGSTOP)
    yield
    loop.send_signal(signal.SIGCONT)


def reads_until(loop: subprocess.Popen[str], *words: str) -> str:
    """What the loop says up to the first line with all these words."""
    assert loop.stdout is not None
    said = ""
    for line in loop.stdout:
        said += line
        if all(word in line for word in words):
            return said
    raise AssertionError(f"it never said {words}:\n{said}")


def test_mlflow_that_comes_late_is_told_all(tmp_path: Path, mlflow: Mlflow) -> None:
    loop = start(tmp_path / "store", 2, 0, mlflow.address)
    said = reads_until(loop, "iteration 1", "train")
    with stopped(loop):
        mlflow.start()
    code, rest = finish(loop)
    said += rest
    assert code == 0, said
    assert said.count(OFF) == 1
    assert said.count(BACK) == 1
    assert MISSED not in said
    assert mlflow.versions() == 3
    points = mlflow.told()
    assert points["iteration 1"] == points["iteration 2"] > 0
    assert set(points) == {"self-play shapes seed 0", "base", "iteration 1", "iteration 2"}


def test_mlflow_that_dies_is_told_by_the_next_run(
    tmp_path: Path, mlflow: Mlflow, finished: Finished
) -> None:
    """At a registration of which it may or may not have heard."""
    mlflow.start()
    loop = start(tmp_path / "store", 1, 0, mlflow.address)
    said = reads_until(loop, "iteration 1", "evaluate")
    mlflow.kill()
    code, rest = finish(loop)
    assert code == 0, said + rest
    assert rest.count("the run goes on without it") == 1
    assert rest.count(MISSED) == 1
    assert digests(tmp_path / "store").items() < digests(finished[0]).items()
    mlflow.start()
    code, again = finish(start(tmp_path / "store", 1, 0, mlflow.address))
    assert code == 0, again
    assert mlflow.versions() == 2
    assert mlflow.told()["iteration 1"] > 0


def test_database_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    address = "postgresql+psycopg2://user:s3cret@127.0.0.1:9/mlflow"
    started = time.monotonic()
    problem = find_problem(address)
    assert time.monotonic() - started < 60
    assert "no database answers at MLFLOW_TRACKING_URI = postgresql+psycopg2://***@" in problem
    code, said = finish(start(tmp_path / "store", 1, 0, address))
    assert code == 0
    assert said.count(OFF) == 1
    assert "s3cret" not in said
    assert "Traceback" not in said


def test_two_runs_share_one_sqlite_file(tmp_path: Path) -> None:
    """Both write to the database without a server, while a third keeps it locked now and then."""
    address = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(tracking_uri=address)
    client.create_experiment("hermesflow-quick", artifact_location=str(tmp_path / "artifacts"))
    loops = [start(tmp_path / "store", 1, seed, address) for seed in (0, 1)]
    with sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None) as other:
        while any(loop.poll() is None for loop in loops):
            other.execute("BEGIN IMMEDIATE")
            time.sleep(0.3)
            other.execute("ROLLBACK")
            time.sleep(0.3)
    for loop in loops:
        code, said = finish(loop)
        assert code == 0, said
        assert "the run goes on without it" not in said
    keys = [v.tags["hermesflow.key"] for v in client.search_model_versions()]
    # The base and its evaluation are of no seed, so both runs have one version of it.
    assert len(keys) == len(set(keys)) == 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """A folder with servers of its own, and a config for them."""
    with prepared(tmp_path_factory.mktemp("services") / "place", False) as loop:
        yield loop


def test_self_play_outlasts_a_prefect_server_that_is_killed(place: Loop, tmp_path: Path) -> None:
    from flows.servers import ensure_servers

    log = tmp_path / "log"
    process = place.start(log)
    until(lambda: (("iteration 1", "score-images")) in dict(read_ends(log)), "scores", 240)
    server = running(place.folder / ".hermesflow")["prefect"]
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: not server.alive, "the end of the server", 10)
    time.sleep(3.0)
    port = int(server.url.rpartition(":")[2])
    urls = ensure_servers(place.folder / ".hermesflow", port)
    assert urls.prefect == server.url
    assert process.wait(400) == 0, log.read_text(encoding="utf-8")
    assert list(check_services(place.environment, chaos.ITERATIONS + 1)) == []


def test_killed_self_play_is_shown_as_crashed_by_the_next(place: Loop, tmp_path: Path) -> None:
    from tests.screenshots import Document

    def under_way() -> list[Document]:
        body = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
        found: list[Document] = ask(
            f"{place.environment['PREFECT_API_URL']}/flow_runs/filter", body
        )
        return found

    config = place.folder / "config.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("iterations: 2", "iterations: 3"), encoding="utf-8")
    process = place.start(tmp_path / "log")
    until(lambda: "sample-images" in str(under_way()), "a stage that runs", 240)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    left = {run["id"] for run in under_way()}
    assert len(left) >= 2
    again = place.start(tmp_path / "again")
    until(lambda: not left & {run["id"] for run in under_way()}, "states of killed runs", 120)
    again.send_signal(signal.SIGTERM)
    assert again.wait(60) == 143
    until(lambda: not under_way(), "the end of all runs", 60)
    config.write_text(text, encoding="utf-8")


AUTOMATION = """
from prefect.automations import Automation
from flows.heartbeats import LOST_RUNS as NAME, watch_heartbeats
watch_heartbeats()
watch_heartbeats()
there = Automation.read(name=NAME)
print(there.trigger.within.total_seconds(), there.enabled)
"""


def test_lost_runs_are_watched_once_and_with_patience(place: Loop) -> None:
    done = run_python("-c", AUTOMATION, **place.environment)
    assert done.stdout.split() == ["600.0", "True"], done.stderr
    api = place.environment["PREFECT_API_URL"]
    names = [automation["name"] for automation in ask(f"{api}/automations/filter", {})]
    assert names.count("hermesflow: lost runs") == 1
