"""Starting and ending a server, with a module that stands where vLLM's would.

`tests/test_vllm.py` does the same with vLLM itself.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from core.config import Endpoint
from core.errors import UserError
from core.stage import run_stage
from core.store import Store
from services.endpoint import Client
from services.vllm_server import served
from tasks.questions import QUESTIONS
from tests.limits import HANGS_SECONDS
from tests.llm_server import MODEL, endpoint
from tests.loops import play, quick
from tests.stage_inputs import make_config, pool_row, publish

PROJECT = Path(__file__).parent.parent
# Starts a child, as vLLM does, that does not end when it is asked to, and writes down both.
SERVER = """
import os, pathlib, signal, subprocess, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
pids = [os.getpid(), subprocess.Popen([sys.executable, "-c", child]).pid]
pathlib.Path(os.environ["PIDS"]).write_text(" ".join(map(str, pids)))
print("arguments", *sys.argv[1:], flush=True)
if options.get("--model") == "broken":
    sys.exit("no such model")
if options.get("--model") != "silent":
    from tests.llm_server import Server
    Server(int(options["--port"])).serve_forever()
signal.pause()
"""


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setattr("services.vllm_server.PATIENCE_SECONDS", 1.0)
    monkeypatch.setenv("HERMESFLOW_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "site/vllm/entrypoints/openai"
    place.mkdir(parents=True)
    (place / "api_server.py").write_text(SERVER)
    return {
        "model": "some/model",
        "python": sys.executable,
        "arguments": ["--dtype", "float32"],
        "environment": {
            "PYTHONPATH": f"{tmp_path / 'site'}:{PROJECT}",
            "PIDS": str(tmp_path / "pids"),
        },
        "start_seconds": 60.0,
    }


def to_serve(serve: dict[str, object], **changes: object) -> Endpoint:
    return endpoint("unused", url=None, serve=serve | changes)


def gone(tmp_path: Path) -> bool:
    """Whether the server and its child end."""
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    deadline = time.monotonic() + HANGS_SECONDS
    while any(psutil.pid_exists(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def logs(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache/vllm").glob("*.log"))


def test_a_server_runs_for_as_long_as_the_block(serve: dict[str, object], tmp_path: Path) -> None:
    with served(to_serve(serve), "judge.endpoint") as ready:
        assert ready.serve is None
        with Client(ready, "judge.endpoint") as client:
            assert client.weigh("Is it?", ["yes", "no"], seed=1)
    assert gone(tmp_path)
    [log] = logs(tmp_path)
    text = log.read_text()
    assert f"--model some/model --served-model-name {MODEL} --host 127.0.0.1" in text
    assert text.rstrip().endswith("--dtype float32")


def test_a_server_ends_with_a_process_that_is_killed(
    serve: dict[str, object], tmp_path: Path
) -> None:
    script = (
        "import sys, time\n"
        "import services.vllm_server\n"
        "services.vllm_server.PATIENCE_SECONDS = 1.0\n"
        "from core.config import Endpoint\n"
        "from services.vllm_server import served\n"
        "with served(Endpoint.model_validate_json(sys.argv[1]), 'judge'):\n"
        "    print('up', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, to_serve(serve).model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=PROJECT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        os.kill(process.pid, signal.SIGKILL)
    assert gone(tmp_path)


def test_a_server_that_ends_at_once_shows_why(serve: dict[str, object], tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"(?s)judge.serve: vLLM ended with code 1 .*no such model"),
        served(to_serve(serve, model="broken"), "judge"),
    ):
        pass
    assert gone(tmp_path)


def test_a_server_that_never_answers_is_given_up(serve: dict[str, object], tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"did not answer within start_seconds = 5; raise it"),
        served(to_serve(serve, model="silent", start_seconds=5.0), "judge"),
    ):
        pass
    assert gone(tmp_path)


@pytest.mark.slow
def test_processes_that_share_a_stage_share_its_server(
    serve: dict[str, object], tmp_path: Path
) -> None:
    settings = {
        "evaluation__judge": "endpoint",
        "evaluation__endpoint": to_serve(serve).model_dump(),
    }
    store = tmp_path / "store"
    runner, _ = play(quick(store, iterations=0, runtime__processes=2, **settings))
    [evaluation] = [result.ref for name, _, result in runner.done if name == "evaluate"]
    results = Store(str(store)).open(evaluation).manifest["results"]
    # One for stage judge and one for evaluate, whose two processes share it.
    assert len(logs(tmp_path)) == 2
    assert gone(tmp_path)
    # The list of models is asked for by each process.
    assert results["endpoint/requests"] == results["endpoint/weighed"] + 2


def test_a_missing_environment_is_named() -> None:
    missing = endpoint(
        "unused",
        url=None,
        serve={
            "model": "m", "python": "none/python", "arguments": [], "environment": {},
            "start_seconds": 1.0,
        },
    )  # fmt: skip
    with (
        pytest.raises(UserError, match=r"serve.python = 'none/python' .*make vllm"),
        served(missing, "judge"),
    ):
        pass


def test_a_stage_has_a_server_only_while_it_works(serve: dict[str, object], tmp_path: Path) -> None:
    """And none at all where everything is there."""
    settings = {
        "endpoint": to_serve(serve).model_dump(), "per_record": 4, "min_f1": 0.6, "max_without": 0.0
    }  # fmt: skip
    config = make_config(questions=settings)
    store = Store(str(tmp_path / "store"))
    pool = publish(store, "pool", [[pool_row("r0", caption="a red ball", questions=[])]])
    done = run_stage(QUESTIONS, config, store, {"pool": pool, "about": [], "base": []})
    assert not done.cached
    assert gone(tmp_path)
    assert run_stage(QUESTIONS, config, store, {"pool": pool, "about": [], "base": []}).cached
    assert len(logs(tmp_path)) == 1
