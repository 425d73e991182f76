"""Local servers let in who knows the password, which is in files of their owner alone.

They are started where a proxy is named that leads nowhere, which must not matter.
"""

import base64
import json
import os
import pty
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch
from urllib.parse import urlsplit

import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from core.errors import UserError
from core.proxies import open_url
from flows.logins import clickable_mlflow
from flows.prefect_pages import clickable_prefect
from flows.servers import Urls, client_environment, ensure_servers, running, states, stop_all
from tests.browser import chromium
from tests.commands import hermesflow
from tests.limits import free_port, own_address
from tests.screenshots import open_page, wait_for
from tracking.addresses import experiments_page

ROOT = Path(__file__).parent.parent
NOWHERE = "http://127.0.0.1:9"
PROXIES = {
    name: NOWHERE
    for lower in ("http_proxy", "https_proxy", "all_proxy")
    for name in (lower, lower.upper())
}
PREFECT = ("/api/flows/count", "/api/flow_runs/filter", "/api/deployments/filter")
MLFLOW = (
    "/api/2.0/mlflow/registered-models/create",
    "/ajax-api/2.0/mlflow/experiments/search?max_results=1",
    "/api/2.0/mlflow-artifacts/artifacts",
    "/get-artifact?path=x",
    "/graphql",
    "/v1/traces",
    "/open",
    "/",
)
CLIENTS = """
import sys
import mlflow
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    print("Prefect", client.read_flows())
print("MLflow", [e.name for e in mlflow.search_experiments()])
"""


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("logins")]  # servers of one worker


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Urls]]:
    """The folder that has the state folder, and what answers there."""
    folder = tmp_path_factory.mktemp("with #, ? and a blank")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("no_proxy", "NO_PROXY", "HERMESFLOW_LOGIN"):
            patch.delenv(name, raising=False)
        for name, value in PROXIES.items():
            patch.setenv(name, value)
        yield folder, ensure_servers(folder / ".hermesflow", free_port(), free_port())
    stop_all(folder / ".hermesflow")


def status(address: str, login: str = "", body: bytes | None = None, host: str = "") -> int:
    """The status of an answer to a request with this login, and under this name of the server."""
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    if host:
        request.add_header("Host", host)
    if login:
        token = base64.b64encode(login.encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=20) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_neither_server_answers_without_the_password(servers: tuple[Path, Urls]) -> None:
    _, urls = servers
    user, _, password = urls.login.partition(":")
    assert len(password) >= 24
    wrong = (f"{user}:{password[:-1]}", f"{user}:", f"x:{password}", "admin:password1234")
    for server, paths in ((urls.prefect, PREFECT), (urls.mlflow, MLFLOW)):
        for path in paths:
            for login in ("", *wrong):
                for body in (None, b"{}"):
                    assert status(server + path, login, body) == 401, (path, login)
    assert status(f"{urls.prefect_api}/flow_runs/filter", urls.login, b"{}") == 200
    assert status(f"{urls.mlflow}/version", urls.login) == 200
    for health in (f"{urls.prefect_api}/health", f"{urls.mlflow}/health"):
        assert status(health) == 200


def test_local_servers_listen_on_loopback_alone(servers: tuple[Path, Urls]) -> None:
    ports = {urlsplit(url).port for url in (servers[1].prefect, servers[1].mlflow)}
    found = psutil.net_connections("inet")
    listening = [c.laddr for c in found if c.status == psutil.CONN_LISTEN and c.laddr.port in ports]
    assert {address.port for address in listening} == ports
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_servers_in_a_network_listen_at_its_address_alone_and_ask_who_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """People come by a tunnel, too, under the name of its end."""
    host = own_address()
    monkeypatch.setenv("HERMESFLOW_HOST", host)
    state = tmp_path / ".hermesflow"
    urls = ensure_servers(state, free_port(), free_port())
    try:
        ports = {urlsplit(url).port for url in (urls.prefect, urls.mlflow)}
        found = [c for c in psutil.net_connections("inet") if c.laddr and c.laddr.port in ports]
        listening = {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN}
        assert listening == {host}
        assert status(f"{urls.prefect_api}/flow_runs/filter", body=b"{}") == 401
        assert status(f"{urls.prefect_api}/flow_runs/filter", urls.login, b"{}") == 200
        search = "/ajax-api/2.0/mlflow/experiments/search?max_results=1"
        assert status(urls.mlflow + search) == 401
        for name, code in (("", 200), ("localhost:5999", 200), ("evil.example.com", 403)):
            assert status(urls.mlflow + search, urls.login, host=name) == code, name
        with open_url(f"{urls.prefect}/ui-settings", 20) as reply:
            assert json.load(reply)["api_url"] == "/api"
        env = (state / "env").read_text(encoding="utf-8")
        assert f"export HERMESFLOW_HOST={host}\n" in env
        assert f"export PREFECT_API_URL={urls.prefect_api}\n" in env
        monkeypatch.delenv("HERMESFLOW_HOST")
        assert ensure_servers(state) == urls
    finally:
        stop_all(state)


def test_events_are_taken_from_who_knows_the_password(servers: tuple[Path, Urls]) -> None:
    """A forged event could trigger an automation."""
    _, urls = servers
    address = urls.prefect_api.replace("http://", "ws://") + "/events/in"
    for token in (None, "hermesflow:x", urls.login):
        with connect(address, subprotocols=["prefect"], proxy=None) as socket:  # type: ignore
            socket.send(json.dumps({"type": "auth", "token": token}))
            if token == urls.login:
                assert json.loads(socket.recv(timeout=10))["type"] == "auth_success"
            else:
                with pytest.raises(ConnectionClosed):
                    socket.recv(timeout=10)


def test_clients_of_ours_log_in_past_the_proxy(servers: tuple[Path, Urls]) -> None:
    """With the variables of subprocesses, and with the file that a user's shell takes."""
    folder, urls = servers
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    plain = {k: v for k, v in plain.items() if k.lower() != "no_proxy"} | PROXIES
    ours = plain | client_environment(urls, folder / ".hermesflow")
    shell = ["bash", "-c", f'source .hermesflow/env && exec "{sys.executable}" -c "$1"', "-"]
    for command, environment in (
        ([sys.executable, "-c", CLIENTS], ours),
        ([*shell, CLIENTS], plain),
    ):
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split("\n")[:2] == ["Prefect []", "MLflow ['Default']"]


def test_stages_and_gc_log_in_by_the_file_and_say_what_is_missing_without(
    servers: tuple[Path, Urls],
) -> None:
    """As runs on a work pool do, whose variables others can read."""
    folder, urls = servers
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    plain |= {"MLFLOW_TRACKING_URI": urls.mlflow, "PYTHONPATH": str(ROOT)}
    for file, code, said in ((folder / ".hermesflow/login", 0, "[]"), ("", 2, "401")):
        environment = plain | {"HERMESFLOW_LOGIN_FILE": str(file)}
        command = [sys.executable, "-P", "-m", "tracking.registered"]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert said in done.stdout + done.stderr


def test_the_password_is_in_files_of_the_owner_alone(servers: tuple[Path, Urls]) -> None:
    folder, urls = servers
    password = urls.login.partition(":")[2]
    state = folder / ".hermesflow"
    holders = {
        path.relative_to(state).as_posix()
        for path in state.rglob("*")
        if path.is_file() and password.encode() in path.read_bytes()
    }
    assert holders == {"login", "env", "prefect/profiles.toml"}
    assert {(state / name).stat().st_mode & 0o777 for name in holders} == {0o600}
    assert state.stat().st_mode & 0o777 == 0o700
    for process in psutil.process_iter(["cmdline"]):
        assert password not in " ".join(process.info["cmdline"] or [])


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="needs root, setpriv")
def test_another_user_reads_neither_password_nor_databases(servers: tuple[Path, Urls]) -> None:
    folder, _ = servers
    outer = folder
    while outer != Path("/tmp") and outer != outer.parent:  # let the other user come this far
        outer.chmod(0o755)
        outer = outer.parent
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    assert subprocess.run([*nobody, "ls", folder], capture_output=True).returncode == 0
    for name in ("login", "env", "prefect/profiles.toml", "mlflow/mlflow.db", "prefect.log", ""):
        place = folder / ".hermesflow" / name
        done = subprocess.run([*nobody, "ls", f"{place}/."], capture_output=True, text=True)
        assert "Permission denied" in done.stderr
        done = subprocess.run([*nobody, "cat", place], capture_output=True, text=True)
        assert "Permission denied" in done.stderr
    for name in ("prefect", "mlflow"):
        pid = running(folder / ".hermesflow")[name].pid
        command = [*nobody, "cat", f"/proc/{pid}/environ"]
        assert "Permission denied" in subprocess.run(command, capture_output=True, text=True).stderr


def test_status_says_how_to_log_in_and_the_password_to_a_terminal_alone(
    servers: tuple[Path, Urls],
) -> None:
    folder, urls = servers
    password = urls.login.partition(":")[2]
    command = [sys.executable, "-P", "-m", "flows.cli", "status"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ".hermesflow/login" in done.stdout
    assert "source .hermesflow/env" in done.stdout
    assert password not in done.stdout + done.stderr
    ours, theirs = pty.openpty()
    subprocess.run(command, cwd=folder, env=environment, stdout=theirs, check=True)
    shown = os.read(ours, 10_000).decode()
    assert f"{urls.prefect}/open.html#{urls.login}/v2/dashboard" in shown
    assert clickable_mlflow(experiments_page(urls.mlflow), urls.login) in shown


@pytest.mark.browser
def test_one_click_opens_both_pages(servers: tuple[Path, Urls], tmp_path: Path) -> None:
    _, urls = servers
    with patch.dict(os.environ, dict.fromkeys(PROXIES, "")), chromium(tmp_path) as browser:
        open_page(browser, urls.prefect, "Login")
        browser.get(clickable_prefect(f"{urls.prefect}/v2/dashboard", urls.login))
        wait_for(browser, "Run a task or flow to get started")
        address = clickable_mlflow(experiments_page(urls.mlflow), urls.login)
        open_page(browser, address, "Default")  # the experiment that every server has
        assert browser.current_url == experiments_page(urls.mlflow)


def test_another_setting_needs_a_new_start(
    servers: tuple[Path, Urls], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = servers
    for setting, says in (("off", "hermesflow down"), ("none", "give on")):
        monkeypatch.setenv("HERMESFLOW_LOGIN", setting)
        with pytest.raises(UserError, match=says):
            ensure_servers(folder / ".hermesflow")
    assert set(running(folder / ".hermesflow")) == {"prefect", "mlflow"}


def test_a_start_that_fails_leaves_nothing_and_status_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """MLflow's database is damaged, and Prefect's server is well. Open ones, by their setting."""
    monkeypatch.setenv("HERMESFLOW_LOGIN", "off")
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".hermesflow/mlflow").mkdir(parents=True)
    (tmp_path / ".hermesflow/mlflow/mlflow.db").write_text("no database " * 99, encoding="utf-8")
    with pytest.raises(UserError, match="MLflow server ended at once"):
        ensure_servers(prefect_port=free_port(), mlflow_port=free_port())
    assert states() == {}
    assert hermesflow(["status"]) == 0
    assert "nothing of ours is running" in capsys.readouterr().out
    assert not [p for p in psutil.process_iter(["environ"]) if _is_below(p, tmp_path)]

    (tmp_path / ".hermesflow/mlflow/mlflow.db").unlink()
    urls = ensure_servers(prefect_port=free_port(), mlflow_port=free_port())
    try:
        assert urls.login == ""
        assert status(f"{urls.prefect_api}/flow_runs/filter", body=b"{}") == 200
        assert status(f"{urls.mlflow}/version") == 200
        server = psutil.Process(running()["mlflow"].pid)
        family = [server, *server.children(recursive=True)]
        for process in family:
            process.suspend()
        assert hermesflow(["status"]) == 0
        assert "does not answer" in capsys.readouterr().out
        for process in family:
            process.resume()
    finally:
        stop_all()


def _is_below(process: psutil.Process, folder: Path) -> bool:
    """Whether a process was started as a server of this folder."""
    environment = process.info["environ"] or {}
    return environment.get("PREFECT_HOME", "").startswith(str(folder))
