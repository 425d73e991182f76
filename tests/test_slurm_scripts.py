"""What ships for Slurm, without Slurm: scripts that parse, and what they check on nodes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest
from limits import HANGS_SECONDS, ROOT, run_python
from loops import QUICK

from core.errors import UserError
from flows import slurm
from flows.slurm import Node, await_idle, check, meet_in, this_node, under_way, work

FOLDER = ROOT / "docker/slurm"
SCRIPTS = sorted(FOLDER.iterdir())
BATCH = sorted(FOLDER.glob("*.sbatch"))
SHELL = {
    *("cd", "echo", "exec", "exit", "export", "fail", "for", "if", "kill", "trap", "wait", "while"),
    *("bash", "head", "hostname", "scancel", "scontrol", "sed", "sleep", "srun"),
    *("then", "else", "fi", "do", "done"),
}
ENVIRONMENT = {
    "SLURMD_NODENAME": "node7",
    "SLURM_JOB_ID": "12",
    "SLURM_RESTART_COUNT": "3",
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
}


def code(script: Path) -> str:
    """A script without its comments."""
    lines = script.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_parse_and_what_they_name_exists(script: Path) -> None:
    parsed = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (parsed.returncode, parsed.stderr) == (0, "")
    text = code(script)
    for module in re.findall(r"-m ([\w.]+)", text):
        assert find_spec(module), module
    for path in re.findall(r"\b(?:docker|docs|configs)/[\w./-]+\w", script.read_text()):
        assert (ROOT / path).is_file(), path
    common = (FOLDER / "common.sh").read_text(encoding="utf-8")
    functions = set(re.findall(r"^(\w+)\(\) \{", common + text, re.MULTILINE))
    called = set(re.findall(r"^ *([a-z_]+) ", text, re.MULTILINE))
    assert called - functions - SHELL == set()
    for command in re.findall(r"flows\.slurm ([a-z-]+)", text):
        assert run_python("-m", "flows.slurm", command, "--help").returncode == 0, command


@pytest.mark.parametrize("script", BATCH, ids=lambda script: script.name)
def test_jobs_are_signalled_before_their_end_and_may_be_requeued(script: Path) -> None:
    options = re.findall(r"^#SBATCH (\S+)", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert {"--requeue", "--open-mode=append", "--output=%x-%j.log"} <= set(options)
    [seconds] = [int(o.rpartition("@")[2]) for o in options if o.startswith("--signal=B:USR1@")]
    # Slurm may be a minute early, never late; what saves its state must come to an end in between.
    assert seconds > slurm.SAVE_SECONDS
    shutdown = re.findall(r"--shutdown-timeout (\d+)", code(script))
    assert all(int(given) < seconds for given in shutdown)
    names = [o.partition("=")[2] for o in options if o.startswith("--job-name=")]
    assert "hermesflow-*.log" in (ROOT / ".gitignore").read_text().split()
    assert names[0].startswith("hermesflow-")


@pytest.mark.parametrize("script", BATCH, ids=lambda script: script.name)
def test_outside_of_the_project_scripts_say_where_to_submit_them(
    script: Path, tmp_path: Path
) -> None:
    ended = subprocess.run(["bash", script], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert f"error: {tmp_path} on " in ended.stderr
    assert "sbatch --chdir=FOLDER" in ended.stderr
    variables = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    variables["HERMESFLOW_PYTHON"] = sys.executable
    ended = subprocess.run(
        ["bash", script], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert f"no job of Slurm runs this; sbatch docker/slurm/{script.name}" in ended.stderr


def test_nodes_are_told_apart_over_restarts() -> None:
    assert this_node(ENVIRONMENT) == Node("node7", "slurm-12-3", 1, 2)
    assert this_node({}).size == 1


def test_nodes_meet_in_a_folder_that_they_share_and_leave_nothing_there(tmp_path: Path) -> None:
    """The first one comes last, and late ones find what it has left for them."""
    problems: list[UserError] = []

    def meet(rank: int, wait: float) -> None:
        time.sleep(wait)
        try:
            meet_in(tmp_path, Node(f"node{rank}", "slurm-1-0", rank, 3), 20.0)
        except UserError as error:
            problems.append(error)

    threads = [
        threading.Thread(target=meet, args=(rank, wait))
        for rank, wait in ((0, 0.3), (1, 0.0), (2, 1.5))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_folder_that_each_node_has_for_itself_is_refused(tmp_path: Path, rank: int) -> None:
    message = rf"store {tmp_path}: node n does not see what 1 of the 2 nodes .* s3://bucket/prefix"
    with pytest.raises(UserError, match=message):
        meet_in(tmp_path, Node("n", "slurm-1-0", rank, 2), 0.1)


class Prefect(BaseHTTPRequestHandler):
    """Answers as Prefect's server does, to who knows the password `u:p`."""

    answers: ClassVar[dict[str, Any]] = {}
    got: ClassVar[list[tuple[str, Any]]] = []

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == "Basic dTpw"
        answer = self.answers.get(self.path) if known else None
        code = 401 if not known else 404 if answer is None else 200
        length = int(self.headers.get("Content-Length") or 0)
        self.got.append((self.path, json.loads(self.rfile.read(length) or b"null")))
        content = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What a server answers, as a clone of the project finds it whose stages are registered."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Prefect)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name in ("MLFLOW_TRACKING_URI", "SLURM_JOB_ID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "u:p")
    monkeypatch.chdir(ROOT)
    Prefect.answers = {
        "/api/work_pools/process": {"name": "process"},
        "/api/deployments/filter": [deployment(ROOT)],
        "/api/flow_runs/count": 0,
    }
    Prefect.got = []
    yield Prefect.answers
    server.shutdown()
    thread.join()
    server.server_close()


def deployment(folder: Path, **variables: str) -> dict[str, Any]:
    return {
        "pull_steps": [{slurm.STEP: {"directory": str(folder)}}],
        "job_variables": {"env": variables},
    }


def checked(store: Path) -> None:
    check(str(QUICK), str(store), Node("node1", "slurm-1-0"), servers=True)


def test_a_node_that_has_all_is_ready(
    prefect: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checked(tmp_path / "store")
    assert (tmp_path / "store/store.json").exists()
    assert "gives up after 45 s without a worker" in capsys.readouterr().err


Change = Callable[[dict[str, Any], pytest.MonkeyPatch, Path], object]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda answers, patch, _: patch.delenv("PREFECT_API_URL"),
            "PREFECT_API_URL is not set.*HERMESFLOW_HOST=ADDRESS hermesflow up",
        ),
        (
            lambda answers, patch, _: patch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api"),
            "no Prefect server answers at .*node1.*leads each node to itself.*hermesflow deploy",
        ),
        (
            lambda answers, patch, _: patch.delenv("PREFECT_API_AUTH_STRING"),
            "refuses the login in PREFECT_API_AUTH_STRING, which is not set; run `source",
        ),
        (
            lambda answers, patch, _: patch.setenv("PREFECT_API_AUTH_STRING", "u:other"),
            "refuses the login in PREFECT_API_AUTH_STRING, which is wrong",
        ),
        (
            lambda answers, patch, _: answers.pop("/api/work_pools/process"),
            "knows no stages on pool 'process'.*hermesflow deploy --pool process",
        ),
        (
            lambda answers, patch, _: answers["/api/deployments/filter"].clear(),
            "knows no stages on pool 'process'.*hermesflow deploy --pool process",
        ),
        (
            lambda answers, patch, place: answers["/api/deployments/filter"].append(
                deployment(place)
            ),
            "are registered in .* and this job runs in .*sbatch --chdir=",
        ),
        (
            lambda answers, patch, _: (
                answers["/api/deployments/filter"].append(
                    deployment(ROOT, MLFLOW_TRACKING_URI="http://old:5000")
                ),
                patch.setenv("MLFLOW_TRACKING_URI", "http://new:5000"),
            ),
            "registered with MLFLOW_TRACKING_URI = http://old:5000, and it is http://new:5000",
        ),
        (
            lambda answers, patch, _: patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9"),
            "node1: no MLflow server answers .*leads each node to itself.*tracking.enabled: false",
        ),
    ],
)
def test_what_is_missing_is_said_with_the_way_out_before_the_store_is_touched(
    prefect: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    change: Change,
    said: str,
) -> None:
    change(prefect, monkeypatch, tmp_path)
    with pytest.raises(UserError, match=f"(?s){said}"):
        checked(tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_job_is_needed_while_something_is_under_way_or_nobody_knows(
    prefect: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not under_way()
    prefect["/api/flow_runs/count"] = 1
    assert under_way()
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert under_way()


def test_workers_wait_for_a_self_play_that_pauses_and_end_after_the_last() -> None:
    now = [0.0]
    answers = iter([True, False, False, True, *[False] * 100])
    await_idle(2, lambda: next(answers), lambda: now[0], lambda s: now.__setitem__(0, now[0] + s))
    assert now[0] == 240  # the last that was under way was seen after 120 s


WORKER = """
import os, signal, subprocess, sys, time
def end(number, frame):
    print("worker ended", flush=True)
    raise SystemExit(0)
signal.signal(signal.SIGTERM, end)
run = [sys.executable, "-c", '''
import signal, sys, time
def save(number, frame):
    time.sleep(1.0); print("saved", flush=True); sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("runs", flush=True)
time.sleep(100)
''']
subprocess.run(run)
"""
WORK = """
import subprocess, sys
from flows import slurm
start = subprocess.Popen
def popen(command):
    print("name", command[command.index("--name") + 1], *command[-2:], flush=True)
    return start([sys.executable, "-c", sys.argv[1]])
slurm.subprocess.Popen = popen
sys.exit(slurm.work(slurm.Node("node1", "slurm-5-2"), ["--work-queue", "gpu"]))
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_at_a_signal_a_run_saves_its_state_and_is_shown_as_crashed(
    prefect: dict[str, Any], number: signal.Signals
) -> None:
    prefect["/api/flow_runs/filter"] = [
        {"id": "mine", "labels": {"prefect.worker.name": "slurm-5-2-node1-0"}},
        {"id": "others", "labels": {"prefect.worker.name": "slurm-5-1-node1-0"}},
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, WORKER],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "name slurm-5-2-node1-0 --work-queue gpu\n"
    assert process.stdout.readline() == "runs\n"
    process.send_signal(number)
    rest, _ = process.communicate(timeout=HANGS_SECONDS)
    assert rest == "saved\n"
    assert process.returncode == 143
    [(path, body)] = [(path, body) for path, body in Prefect.got if "set_state" in path]
    assert path == "/api/flow_runs/mine/set_state"
    assert body["state"]["type"] == "CRASHED"
    assert body["state"]["message"] == "the time of slurm-5-2-node1-0 is over"


def test_the_end_of_a_worker_is_the_end_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = shutil.which("false")
    assert ended
    start = subprocess.Popen
    monkeypatch.setattr(slurm.subprocess, "Popen", lambda command: start([ended]))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    try:
        assert work(Node("node1", "slurm-1-0"), []) == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
