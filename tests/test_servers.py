"""Local servers: started once, reused, found by their records, and only ours are ever ended."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from limits import HANGS_SECONDS, free_port, own_address
from loops import quick

from core.errors import UserError
from flows import containers, processes, servers
from flows.processes import Record, launch, read_record, stop
from flows.servers import Urls, client_environment, ensure_servers, ensure_worker, running, stop_all
from tests.commands import hermesflow

SLEEP = [sys.executable, "-c", "import time; time.sleep(120)"]
# The child leaves the session of its parent, as the web server of MLflow does.
PARENT = [
    sys.executable,
    "-c",
    "import subprocess, sys, time\n"
    f"child = subprocess.Popen({SLEEP!r}, start_new_session=True)\n"
    "print(child.pid, flush=True); time.sleep(120)",
]
FLOW = """
from pathlib import Path
from prefect import flow

@flow(name="scratch")
def scratch(target: str, config: str = "pipeline.yaml") -> None:
    Path(target).write_text(config)
"""


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "thing.json"
    yield path
    stop(path)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / ".hermesflow"
    yield path
    stop_all(path)


def start(record: Path, command: list[str]) -> Record:
    return launch(record, record.with_suffix(".log"), "http://nowhere", command, os.environ)


def answers(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=5) as reply:
        return bool(reply.status == 200)


def test_launched_process_is_on_record_and_outlives_its_launcher(record: Path) -> None:
    started = start(record, SLEEP)
    assert read_record(record) == started
    assert started.alive
    assert psutil.Process(started.pid).ppid() != os.getpid()
    assert stop(record)
    assert not started.alive
    assert not record.exists()
    assert not stop(record)


def test_detached_children_end_with_a_parent_that_was_killed(record: Path) -> None:
    started = start(record, PARENT)
    log = record.with_suffix(".log")
    while not (text := log.read_text(encoding="utf-8")).endswith("\n"):
        pass
    child = psutil.Process(int(text))
    os.kill(started.pid, signal.SIGKILL)
    assert child.is_running()
    assert stop(record)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_process_that_ignores_the_request_to_end_is_killed(
    record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.5)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True)"
    started = start(record, [sys.executable, "-c", code + "; time.sleep(120)"])
    while not record.with_suffix(".log").read_text(encoding="utf-8"):
        pass
    assert stop(record)
    assert not started.alive


def test_stranger_with_a_recycled_id_is_left_alone(record: Path) -> None:
    with subprocess.Popen(SLEEP) as stranger:
        identity = {"pid": stranger.pid, "started": 1.0, "url": "http://x", "mark": "none"}
        record.write_text(json.dumps(identity), encoding="utf-8")
        found = read_record(record)
        assert found is not None
        assert not found.alive
        assert not stop(record)
        assert stranger.poll() is None
        stranger.kill()


def test_damaged_record_counts_as_none(record: Path) -> None:
    for text in ('{"pid": 1', "[]", '{"pid": 1}'):
        record.write_text(text, encoding="utf-8")
        assert read_record(record) is None
        assert not stop(record)


def _fake_server(code: str) -> servers._Server:
    return servers._Server("fake", "Fake server", free_port(), "/health", lambda *_: ["-c", code])


def test_server_that_does_not_start_shows_the_end_of_its_log(state: Path) -> None:
    folder = servers._prepare(state)
    server = _fake_server("raise SystemExit('no database')")
    record = servers._start_if_needed(folder, server)
    with pytest.raises(UserError, match=r"(?s)Fake server ended at once; the end of .*no database"):
        servers._await(folder, (server,), {"fake": record})
    assert not (folder / "fake.json").exists()


def test_server_that_hangs_is_ended(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "START_SECONDS", 1.0)
    folder = servers._prepare(state)
    server = _fake_server("import time; print('waiting', flush=True); time.sleep(120)")
    record = servers._start_if_needed(folder, server)
    with pytest.raises(UserError, match="gave no answer within 1 s"):
        servers._await(folder, (server,), {"fake": record})
    assert not record.alive


def test_taken_port_is_named_and_the_next_free_one_used(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = _fake_server("")
    with socket.socket() as other:
        other.bind(("127.0.0.1", server.port))
        other.listen()
        port = servers._free_port(server)
    assert server.port < port < server.port + 100
    assert f"port {server.port} is taken by another program" in capsys.readouterr().err


# Listens once a file says so, and answers every request with its own process id.
WEB_SERVER = """
import http.server, os, pathlib, sys, time
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(os.getpid()).encode())
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.05)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


def _web_server(go: Path) -> servers._Server:
    command = ["-c", WEB_SERVER]
    port = free_port()
    return servers._Server(
        "fake", "", port, "/", lambda _, host, port: [*command, str(port), str(go)]
    )


ELSEWHERE = {"host": "login9", "boot": "0"}


def record_of(name: str, state: Path, **changes: object) -> Path:
    """A record as this process would have, with some fields changed."""
    me = psutil.Process()
    known = {"pid": me.pid, "started": me.create_time(), "url": "http://127.0.0.1:4200"}
    here = {"mark": "none", "host": socket.gethostname(), "boot": processes.boot_id()}
    servers._prepare(state)
    path = state / f"{name}.json"
    path.write_text(json.dumps({**known, **here, **changes}), encoding="utf-8")
    return path


def test_servers_of_another_machine_that_shares_the_folder_are_left_alone(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = record_of("prefect", state, **ELSEWHERE)
    before = path.read_text(encoding="utf-8")
    for act in (ensure_servers, stop_all, lambda s: ensure_worker(Urls("x", "y"), s)):
        with pytest.raises(UserError, match=r"was started on login9.*delete .*prefect\.json"):
            act(state)
    assert path.read_text(encoding="utf-8") == before
    assert running(state) == {}
    monkeypatch.chdir(state.parent)
    assert hermesflow(["status"]) == 0
    assert "was started on login9; look there" in capsys.readouterr().out
    path.unlink()  # as the message says, of a machine that is gone


@pytest.mark.skipif(not processes.boot_id(), reason="systems other than Linux name no boot")
def test_a_machine_that_was_renamed_or_started_anew_knows_its_servers(state: Path) -> None:
    for change in ({"host": "before"}, {"boot": "before"}):
        record = read_record(record_of("prefect", state, **change))
        assert record is not None
        assert not record.elsewhere
    (state / "prefect.json").unlink()


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("0.0.0.0", "is no address that others can go to; give in HERMESFLOW_HOST"),
        ("198.51.100.1", "is no address of this machine.*give in HERMESFLOW_HOST"),
        ("no such host", "is no address of this machine.*give in HERMESFLOW_HOST"),
        ("login1", "is 127.0.1.1 on this machine, which leads every other machine to itself"),
    ],
)
def test_an_address_where_nobody_comes_to_is_refused(
    state: Path, monkeypatch: pytest.MonkeyPatch, host: str, said: str
) -> None:
    """Debian gives the name of a machine a loopback address."""
    look_up = socket.getaddrinfo

    def names(name: str, *arguments: object) -> object:
        return look_up("127.0.1.1" if name == "login1" else name, *arguments)  # type: ignore

    monkeypatch.setattr(socket, "getaddrinfo", names)
    monkeypatch.setenv("HERMESFLOW_HOST", host)
    with pytest.raises(UserError, match=said):
        ensure_servers(state)
    assert not (state / "prefect.json").exists()


def test_servers_in_a_network_without_a_login_are_refused(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own_address() == servers.HOST:
        pytest.skip("this machine is in no network")
    monkeypatch.setenv("HERMESFLOW_HOST", own_address())
    monkeypatch.setenv("HERMESFLOW_LOGIN", "off")
    with pytest.raises(UserError, match=r"HERMESFLOW_LOGIN = 'off' with HERMESFLOW_HOST = .*unset"):
        ensure_servers(state)
    assert not (state / "prefect.json").exists()


def test_a_second_server_goes_where_the_first_one_is(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has forgotten HERMESFLOW_HOST does not get one here and one there."""
    record_of("prefect", state, url="http://login1:4200")
    monkeypatch.delenv("HERMESFLOW_HOST", raising=False)
    assert servers._host(state) == "login1"
    monkeypatch.setenv("HERMESFLOW_HOST", "127.0.0.1")
    with pytest.raises(
        UserError, match=r"listen at login1, .* wants it otherwise.*hermesflow down"
    ):
        servers._host(state)
    (state / "prefect.json").unlink()


def test_something_is_done_while_servers_start(state: Path) -> None:
    """Only then: this one listens once it is done."""
    folder, go = servers._prepare(state), state / "go"
    server = _web_server(go)
    records = {"fake": servers._start_if_needed(folder, server)}
    servers._await(folder, (server,), records, go.touch)
    assert servers.answers(records["fake"].url)
    servers._await(folder, (server,), records, lambda: pytest.fail("it is up"))
    assert stop(folder / "fake.json")


@pytest.mark.slow
def test_what_is_imported_before_servers_answer_reads_none_of_their_settings() -> None:
    code = (
        "import sys; from flows import local; local._import_stages(); "
        "assert {'torch', 'sentence_transformers'} <= set(sys.modules); "
        "sys.exit(any(name in sys.modules for name in ('prefect', 'mlflow')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_port_lost_to_another_server_meanwhile_is_not_taken_for_ours(state: Path) -> None:
    folder, go = servers._prepare(state), state / "go"
    server = _web_server(go)
    records = {"fake": servers._start_if_needed(folder, server)}
    lost = records["fake"]
    assert lost.url.endswith(f":{server.port}")
    now = str(state)  # this file exists already
    other = [sys.executable, "-c", WEB_SERVER, str(server.port), now]
    with subprocess.Popen(other) as stranger:
        try:
            while not servers.answers(lost.url):
                pass
            go.touch()
            servers._await(folder, (server,), records)
            assert records["fake"].url != lost.url
            with urllib.request.urlopen(records["fake"].url, timeout=5) as reply:
                assert int(reply.read()) == records["fake"].pid
            assert read_record(folder / "fake.json") == records["fake"]
            assert stop(folder / "fake.json")
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_place_in_which_mlflow_cannot_start_is_named_before_any_work(tmp_path: Path) -> None:
    folder = tmp_path / "50% done"
    folder.mkdir()
    (folder / ".venv").symlink_to(sys.prefix)
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [str(folder / ".venv/bin/python"), "-P", "-m", "flows.cli", "up"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert f"{folder}/.venv/lib" in done.stderr
    assert "has a % in its path" in done.stderr
    assert "move the project" in done.stderr
    assert not (folder / ".hermesflow").exists()


DOCKER = """#!/bin/sh
echo "$@" >> "{log}"
case "$*" in *" up -d") echo "no such image" >&2; exit 1;; esac
"""


def test_containers_that_do_not_start_are_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an engine that starts none."""
    log = tmp_path / "log"
    (tmp_path / "docker").write_text(DOCKER.format(log=log), encoding="utf-8")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    config = quick("s3://bucket/store")
    with pytest.raises(UserError, match=r"(?s)could not be started.*no such image"):
        containers.start(config, tmp_path)
    assert log.read_text(encoding="utf-8").splitlines()[-1].endswith(" stop")


def test_state_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be written"):
        ensure_servers(tmp_path / "file/state")
    assert stop_all(tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_commands_exit_with_2_and_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hermesflow(["check", "none.yaml"]) == 2
    assert "config file none.yaml does not exist" in capsys.readouterr().err
    assert hermesflow(["run", "none.yaml"]) == 2
    assert hermesflow(["status"]) == 0
    assert hermesflow(["down"]) == 0
    assert list(tmp_path.iterdir()) == []


def _urls(state: Path) -> Urls:
    return ensure_servers(state, free_port(), free_port())


@pytest.mark.slow
def test_servers_start_once_survive_kills_and_stop(state: Path, tmp_path: Path) -> None:
    """Both servers for real: started twice at once, one killed, then all stopped."""
    found: list[Urls] = []
    threads = [threading.Thread(target=lambda: found.append(_urls(state))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    urls = found[0]
    assert found == [urls, urls]
    assert answers(urls.prefect_api + "/health")
    assert answers(urls.mlflow + "/health")

    before = running(state)
    os.kill(before["mlflow"].pid, signal.SIGKILL)
    while before["mlflow"].alive:
        pass
    again = ensure_servers(state, free_port(), free_port())
    assert again.prefect == urls.prefect
    assert answers(again.mlflow + "/health")

    assert sorted(stop_all(state)) == ["mlflow", "prefect"]
    assert running(state) == {}
    marks = {record.mark for record in before.values()}
    assert not any(
        processes._bears(process, mark) for process in psutil.process_iter() for mark in marks
    )


@pytest.mark.slow
def test_plain_prefect_command_runs_a_deployment(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user does it: in the project folder, without any variable set."""
    urls = _urls(state)
    project = tmp_path
    (project / "scratch.py").write_text(FLOW, encoding="utf-8")
    settings = '[tool.prefect]\nprofiles_path = ".hermesflow/prefect/profiles.toml"\n'
    (project / "pyproject.toml").write_text(settings, encoding="utf-8")
    # Another process, because Prefect reads its settings once.
    register = f"""
from pathlib import Path
from flows import deploy
deploy.PARENT = "scratch.py:scratch"
deploy.deploy_parent(Path({str(project)!r}))
"""
    environment = {**os.environ, **client_environment(urls, state)}
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", register], env=environment, cwd=root, check=True)
    prefect = [sys.executable, "-P", "-m", "prefect", "deployment"]
    schedule = [*prefect, "schedule", "create", "scratch/iterate", "--cron", "0 2 * * *"]
    subprocess.run(schedule, env=environment, cwd=root, check=True)
    # Registered anew, as `make up` does, it keeps its schedule.
    subprocess.run([sys.executable, "-c", register], env=environment, cwd=root, check=True)
    listing = subprocess.run(
        [*prefect, "schedule", "ls", "scratch/iterate"],
        env=environment, cwd=root, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert listing.stdout.count("0 2 * * *") == 1
    ensure_worker(urls, state)
    worker = running(state)["worker"]
    ensure_worker(urls, state)
    assert running(state)["worker"] == worker

    command = [*prefect, "run", "scratch/iterate"]
    command += ["-p", f"target={project}/out.txt", "-p", "config=other.yaml", "--watch"]
    plain = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    subprocess.run(command, env=plain, cwd=project, check=True, timeout=HANGS_SECONDS)
    assert (project / "out.txt").read_text(encoding="utf-8") == "other.yaml"
    assert sorted(stop_all(state)) == ["mlflow", "prefect", "worker"]
