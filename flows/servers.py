"""The local Prefect server, MLflow server and worker: started, reused and stopped.

Everything lives in one state folder: databases, logs, and a record of each process.
"""

import os
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from core.errors import UserError
from core.files import locked, writing_to
from flows.processes import Record, launch, listens, read_record, stop

STATE = Path(".hermesflow")
HOST = "127.0.0.1"
PREFECT_PORT = 4200
MLFLOW_PORT = 5000
WORK_POOL = "local"  # of the parent, which waits and hardly works where stages have a pool
START_SECONDS = 240.0
POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Urls:
    """Where our servers answer, and `user:password` where they ask for it."""

    prefect: str
    mlflow: str
    login: str = ""

    @property
    def prefect_api(self) -> str:
        """Base address of the Prefect API."""
        return f"{self.prefect}/api"


@dataclass(frozen=True)
class _Server:
    name: str
    title: str
    port: int
    health: str
    command: Callable[[Path, int], list[str]]


def ensure_servers(
    state: Path = STATE,
    prefect_port: int = PREFECT_PORT,
    mlflow_port: int = MLFLOW_PORT,
    meanwhile: Callable[[], object] | None = None,
) -> Urls:
    """Reuse our running servers or start them together; the ports are preferences.

    `meanwhile` is called while they start. UserError with the tail of the log if one does not come
    up.
    """
    state = _prepare(state)
    servers = (
        _Server("prefect", "Prefect server", prefect_port, "/api/health", _prefect_command),
        _Server("mlflow", "MLflow server", mlflow_port, "/health", _mlflow_command),
    )
    with locked(state / "servers.lock"):
        records = {server.name: _start_if_needed(state, server) for server in servers}
        _await(state, servers, records, meanwhile)
        urls = Urls(records["prefect"].url, records["mlflow"].url)
        write_profile(urls, state)
    return urls


def ensure_worker(urls: Urls, state: Path = STATE) -> None:
    """Reuse our process worker if it serves these servers, else start one."""
    state = _prepare(state)
    record_path, log = state / "worker.json", state / "worker.log"
    served = f"{urls.prefect} {urls.mlflow}"
    with locked(state / "servers.lock"):
        record = read_record(record_path)
        if record is not None and record.alive and record.url == served:
            return
        stop(record_path)
        command = [sys.executable, "-P", "-m", "prefect", "worker", "start"]
        command += ["--pool", WORK_POOL, "--type", "process", "--name", "local"]
        environment = {**os.environ, **client_environment(urls, state)}
        record = launch(record_path, log, served, command, environment)
        with _waiting("the worker"):
            _until(
                lambda: "started!" in log.read_text(encoding="utf-8", errors="replace"),
                record,
                "worker",
                log,
            )


def client_environment(urls: Urls, state: Path = STATE) -> dict[str, str]:
    """Variables that point Prefect and MLflow clients at our servers, telemetry off."""
    home = state.resolve() / "prefect"
    user, _, password = urls.login.partition(":")
    login = {
        "PREFECT_API_AUTH_STRING": urls.login,
        "MLFLOW_TRACKING_USERNAME": user,
        "MLFLOW_TRACKING_PASSWORD": password,
    }
    return {
        **(login if user else {}),
        "PREFECT_API_URL": urls.prefect_api,
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_CLIENT_MAX_RETRIES": "8",  # with growing pauses, so that a restart is outlasted
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # what shows that a machine is not lost
        "MLFLOW_TRACKING_URI": urls.mlflow,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }


def stop_all(state: Path = STATE) -> list[str]:
    """End the processes that we started, the worker first; returns the names of those ended."""
    if not state.is_dir():
        return []
    with locked(state / "servers.lock"):
        names = ("worker", "prefect", "mlflow")
        return [name for name in names if stop(state / f"{name}.json")]


def running(state: Path = STATE) -> dict[str, Record]:
    """Records of our living processes by name."""
    records = {
        name: read_record(state / f"{name}.json") for name in ("prefect", "mlflow", "worker")
    }
    return {name: record for name, record in records.items() if record and record.alive}


def _prepare(state: Path) -> Path:
    state = state.resolve()
    with writing_to(state):
        for name in ("prefect", "mlflow"):
            (state / name).mkdir(parents=True, exist_ok=True)
    return state


def _start_if_needed(state: Path, server: _Server) -> Record:
    record_path = state / f"{server.name}.json"
    record = read_record(record_path)
    # One that lives may still be starting, begun by a command that was killed.
    if record is not None and record.alive:
        return record
    stop(record_path)
    port = _free_port(server)
    environment = _server_environment(state, port)
    command = [sys.executable, *server.command(state, port)]
    return launch(
        record_path, state / f"{server.name}.log", f"http://{HOST}:{port}", command, environment
    )


def _prefect_command(state: Path, port: int) -> list[str]:
    return ["-P", "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]


def _mlflow_command(state: Path, port: int) -> list[str]:
    folder = state / "mlflow"
    return [
        *("-P", "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]


def _server_environment(state: Path, port: int) -> dict[str, str]:
    """The user's environment without settings meant for other Prefect or MLflow servers."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT_", "MLFLOW_"))
    }
    return {
        **inherited,
        "PREFECT_HOME": str(state / "prefect"),
        # A path that is never written: the profile names a client's server, not this one.
        "PREFECT_PROFILES_PATH": str(state / "prefect" / "no-profiles.toml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_API_URL": f"http://{HOST}:{port}/api",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }


def _free_port(server: _Server) -> int:
    for port in range(server.port, server.port + 100):
        if _taken(port):
            continue
        if port != server.port:
            say(f"port {server.port} is taken by another program: {server.title} takes {port}")
        return port
    raise UserError(
        f"{server.title}: ports {server.port} to {server.port + 99} are all taken; free one"
    )


def _await(
    state: Path,
    servers: tuple[_Server, ...],
    records: dict[str, Record],
    meanwhile: Callable[[], object] | None = None,
) -> None:
    pending = [server for server in servers if not _up(server, records[server.name])]
    if not pending:
        return
    with _waiting(" and ".join(server.title for server in pending)):
        if meanwhile:
            meanwhile()
        for server in pending:
            records[server.name] = _come_up(state, server, records[server.name])


def _come_up(state: Path, server: _Server, record: Record) -> Record:
    """The record of the server once it answers: of another one where it lost its port."""
    while True:
        try:
            ready = partial(_up, server, record)
            _until(ready, record, server.title, state / f"{server.name}.log")
        except UserError:
            stop(state / f"{server.name}.json")
            # Servers of another folder that start at this moment may be faster to listen.
            if not _taken(_port(record)):
                raise
            record = _start_if_needed(state, server)
        else:
            return record


def _up(server: _Server, record: Record) -> bool:
    """Whether it answers, and not another program at its port."""
    return answers(record.url + server.health) and listens(record, _port(record))


def _port(record: Record) -> int:
    return int(record.url.rpartition(":")[2])


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
        return False


def answers(url: str) -> bool:
    """Whether a server answers well."""
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _until(ready: Callable[[], bool], record: Record, title: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        late = time.monotonic() > deadline
        if late or not record.alive:
            what = f"gave no answer within {START_SECONDS:.0f} s" if late else "ended at once"
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            raise UserError(
                f"{title} {what}; the end of {log}:\n  "
                + "\n  ".join(tail)
                + "\nremove the cause (or the state folder, if its database is damaged), run again"
            )
        time.sleep(POLL_SECONDS)


@contextmanager
def _waiting(what: str) -> Iterator[None]:
    started = time.monotonic()
    say(f"starting {what} (first time: up to a minute) ...")
    yield
    say(f"{what} ready after {time.monotonic() - started:.0f} s")


def say(text: str) -> None:
    """One line in the terminal."""
    print(text, file=sys.stderr, flush=True)


def write_profile(urls: Urls, state: Path = STATE) -> None:
    """Write the Prefect profile that pyproject.toml points to, for the user's own commands."""
    path = _prepare(state) / "prefect" / "profiles.toml"
    environment = client_environment(urls, state)
    names = (
        "PREFECT_API_URL",
        "PREFECT_API_AUTH_STRING",
        "PREFECT_HOME",
        "PREFECT_SERVER_ANALYTICS_ENABLED",
    )
    lines = ['active = "local"', "[profiles.local]"]
    lines += [f'{name} = "{environment[name]}"' for name in names if name in environment]
    part = path.with_suffix(".part")
    part.touch(mode=0o600)
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.move(part, path)
