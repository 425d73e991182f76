"""The local Prefect server, MLflow server and worker: started, reused and stopped.

Everything lives in one state folder: databases, logs, the login, and a record of each process.
"""

import ipaddress
import json
import os
import socket
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from core.errors import UserError
from core.files import locked, writing_to
from core.proxies import OWN_NAME, open_url, past_proxies
from flows.logins import (
    ENV,
    LOGIN,
    OWNER_ONLY,
    SWITCH,
    client_login,
    login_wanted,
    mlflow_login,
    prefect_login,
    read_login,
    settle_login,
    write_env,
    write_private,
)
from flows.prefect_pages import PAGES, prepare_pages
from flows.processes import Record, is_left, launch, listens, read_record, stop
from tracking.connection import LOGIN_FILE

STATE = Path(".hermesflow")
HOST = "127.0.0.1"
PREFECT_PORT = 4200
MLFLOW_PORT = 5000
WORK_POOL = "local"  # of the parent, which waits and hardly works where stages have a pool
NAMES = ("worker", "prefect", "mlflow")  # of our processes, in the order in which they end
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
    command: Callable[[Path, str, int], list[str]]
    login: Callable[[Path, str], dict[str, str]] = lambda state, login: {}
    host: str = HOST


def ensure_servers(
    state: Path = STATE,
    prefect_port: int = PREFECT_PORT,
    mlflow_port: int = MLFLOW_PORT,
    meanwhile: Callable[[], object] | None = None,
) -> Urls:
    """Reuse our running servers or start them together; the ports are preferences.

    They listen on this machine alone, or where HERMESFLOW_HOST says. `meanwhile` is called while
    they start. UserError with the tail of the log if one does not come up; then none of those
    started here is left.
    """
    state = _prepare(state)
    with locked(state / "servers.lock"):
        _check_machine(state)
        host = _host(state)
        servers = (
            _Server(
                "prefect", "Prefect server", prefect_port, "/api/health", _prefect_command,
                lambda state, login: prefect_login(login), host,
            ),
            _Server(
                "mlflow", "MLflow server", mlflow_port, "/health", _mlflow_command, mlflow_login,
                host,
            ),
        )  # fmt: skip
        login = _login(state)
        with all_or_nothing(state):
            records = {server.name: _start_if_needed(state, server) for server in servers}
            _await(state, servers, records, meanwhile)
        prepare_pages(state)
        urls = Urls(records["prefect"].url, records["mlflow"].url, login)
        write_access(urls, state)
    return urls


def known_urls(state: Path = STATE) -> Urls | None:
    """Where our servers run and how to log in; None unless both run."""
    records = running(state)
    if not {"prefect", "mlflow"} <= records.keys():
        return None
    return Urls(records["prefect"].url, records["mlflow"].url, read_login(state))


@contextmanager
def all_or_nothing(state: Path = STATE) -> Iterator[None]:
    """End the processes of ours that were started inside of the block, if that fails."""
    state = state.resolve()
    before = running(state)
    try:
        yield
    except BaseException:
        for name in NAMES:
            if name not in before:
                stop(state / f"{name}.json")
        raise


def _check_machine(state: Path) -> None:
    """UserError if the servers of this folder belong to another machine that shares it.

    Two of them on one database would ruin it, and none can be ended from here.
    """
    for name in NAMES:
        record = read_record(state / f"{name}.json")
        if record is not None and record.elsewhere:
            raise UserError(
                f"{name} of {state} was started on {record.host}, and this is "
                f"{socket.gethostname()}: start, stop and use local servers there; commands of "
                f"Prefect and MLflow reach them from here after `source {state / ENV}`. If that "
                f"machine is gone, delete {state / name}.json"
            )


def _host(state: Path) -> str:
    """Where the servers are to listen: HERMESFLOW_HOST, or where one of them listens already."""
    there = {urlsplit(r.url).hostname for name, r in running(state).items() if name != "worker"}
    wanted = os.environ.get(OWN_NAME)
    if not wanted:
        return next((host for host in there if host), HOST)
    if there - {wanted.lower()}:
        raise UserError(
            f"the local servers that run here listen at {there.pop()}, and {OWN_NAME} = "
            f"{wanted!r} wants it otherwise; stop them with `hermesflow down` and start them again"
        )
    _check_host(wanted)
    return wanted


def _check_host(host: str) -> None:
    """UserError unless others can reach this machine by this name, and have to log in."""
    way_out = (
        f"give in {OWN_NAME} the name or IPv4 address by which other machines reach this one, or "
        "nothing, and the servers listen on this machine alone"
    )
    try:
        address = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
        with socket.socket() as probe:
            probe.bind((address, 0))
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"{OWN_NAME} = {host!r} is no address of this machine ({error}); {way_out}"
        ) from None
    found = ipaddress.ip_address(address)
    if found.is_unspecified:
        raise UserError(f"{OWN_NAME} = {host!r} is no address that others can go to; {way_out}")
    if found.is_loopback and host not in (address, "localhost"):
        raise UserError(
            f"{OWN_NAME} = {host!r} is {address} on this machine, which leads every other machine "
            f"to itself; {way_out}"
        )
    if not found.is_loopback and not login_wanted():
        raise UserError(
            f"{SWITCH} = 'off' with {OWN_NAME} = {host!r} would let everybody in the network use "
            "the servers and run code here; unset one of them"
        )


def _login(state: Path) -> str:
    """The login of the servers; a worker that knows another one ends."""
    before = read_login(state)
    login = settle_login(state, bool({"prefect", "mlflow"} & running(state).keys()))
    if login != before:
        stop(state / "worker.json")
    return login


def ensure_worker(urls: Urls, state: Path = STATE) -> None:
    """Reuse our process worker if it serves these servers, else start one."""
    state = _prepare(state)
    record_path, log = state / "worker.json", state / "worker.log"
    served = f"{urls.prefect} {urls.mlflow}"
    with locked(state / "servers.lock"):
        _check_machine(state)
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
    addresses = {"PREFECT_API_URL": urls.prefect_api, "MLFLOW_TRACKING_URI": urls.mlflow}
    ours = urls.login and urls.login == read_login(state)
    host = urlsplit(urls.prefect).hostname or HOST
    if host != HOST:
        addresses[OWN_NAME] = host
    return {
        **addresses,
        **client_login(urls.login),
        **({LOGIN_FILE: str(state.resolve() / LOGIN)} if ours else {}),
        **past_proxies({**os.environ, **addresses}),
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_CLIENT_MAX_RETRIES": "8",  # with growing pauses, so that a restart is outlasted
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # what shows that a machine is not lost
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }


def stop_all(state: Path = STATE) -> list[str]:
    """End the processes that we started, the worker first; returns the names of those ended."""
    if not state.is_dir():
        return []
    with locked(state / "servers.lock"):
        _check_machine(state)
        return [name for name in NAMES if stop(state / f"{name}.json")]


def running(state: Path = STATE) -> dict[str, Record]:
    """Records of our living processes by name."""
    records = {name: read_record(state / f"{name}.json") for name in reversed(NAMES)}
    return {name: record for name, record in records.items() if record and record.alive}


def states(state: Path = STATE) -> dict[str, tuple[Record, str]]:
    """Record and state in words of each process that we started and that is not all gone."""
    found: dict[str, tuple[Record, str]] = {}
    for name in reversed(NAMES):
        record = read_record(state / f"{name}.json")
        if record is None:
            continue
        if record.elsewhere:
            found[name] = record, f"was started on {record.host}; look there"
        elif record.alive:
            health = {"prefect": "/api/health", "mlflow": "/health"}.get(name)
            well = health is None or answers(record.url + health, ours=True)
            found[name] = (
                record,
                ("runs" if well else f"does not answer (yet); its log is {state / name}.log"),
            )
        elif is_left(record):
            found[name] = (
                record,
                "has ended, but not what it had started; hermesflow down ends that",
            )
    return found


def _prepare(state: Path) -> Path:
    state = state.resolve()
    _check_place()
    with writing_to(state):
        for name in ("prefect", "mlflow"):
            (state / name).mkdir(parents=True, exist_ok=True)
        state.chmod(OWNER_ONLY)  # databases, logs and the login are nobody else's
    return state


def _check_place() -> None:
    """UserError if the packages lie where MLflow cannot make its database."""
    place = sysconfig.get_path("purelib")
    if "%" in place:
        raise UserError(
            f"{place} has a % in its path, with which MLflow cannot start (its database migrations "
            "take it for a variable); move the project to a folder without one and delete .venv"
        )


def _start_if_needed(state: Path, server: _Server) -> Record:
    record_path = state / f"{server.name}.json"
    record = read_record(record_path)
    # One that lives may still be starting, begun by a command that was killed.
    if record is not None and record.alive:
        return record
    stop(record_path)
    port = _free_port(server)
    url = f"http://{server.host}:{port}"
    login = server.login(state, read_login(state))
    environment = _server_environment(state, url) | login
    command = [sys.executable, *server.command(state, server.host, port)]
    return launch(record_path, state / f"{server.name}.log", url, command, environment)


def _prefect_command(state: Path, host: str, port: int) -> list[str]:
    return ["-P", "-m", "prefect", "server", "start", "--host", host, "--port", str(port)]


def _mlflow_command(state: Path, host: str, port: int) -> list[str]:
    # People come by a tunnel, too, whose end has another name and port.
    hosts = "" if host == HOST else f"{host}:{port},localhost:*,127.0.0.1:*"
    # Below the state folder, in which servers run: an address of a database cannot hold every
    # character that the name of a folder can.
    return [
        *("-P", "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", "sqlite:///mlflow/mlflow.db"),
        *("--artifacts-destination", "mlflow/artifacts"),
        *(("--app-name", "basic-auth") if read_login(state) else ()),
        *(("--allowed-hosts", hosts) if hosts else ()),
    ]


def _server_environment(state: Path, url: str) -> dict[str, str]:
    """The user's environment without settings meant for other Prefect or MLflow servers."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT_", "MLFLOW_"))
    }
    return {
        **inherited,
        **past_proxies(inherited),
        "PREFECT_HOME": str(state / "prefect"),
        "PREFECT_API_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///prefect/prefect.db",
        "PREFECT_UI_STATIC_DIRECTORY": str(state / PAGES),
        # A path that is never written: the profile names a client's server, not this one.
        "PREFECT_PROFILES_PATH": str(state / "prefect" / "no-profiles.toml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Its pages ask the address by which they were opened, be it the end of a tunnel.
        "PREFECT_SERVER_UI_API_URL": f"{url}/api" if urlsplit(url).hostname == HOST else "/api",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }


def _free_port(server: _Server) -> int:
    for port in range(server.port, server.port + 100):
        if _taken(server.host, port):
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
            if not _taken(server.host, _port(record)):
                raise
            record = _start_if_needed(state, server)
        else:
            return record


def _up(server: _Server, record: Record) -> bool:
    """Whether it answers, and not another program at its port."""
    return answers(record.url + server.health, ours=True) and listens(record, _port(record))


def _port(record: Record) -> int:
    return int(record.url.rpartition(":")[2])


def _taken(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
        return False


def answers(url: str, *, ours: bool = False) -> bool:
    """Whether a server answers well; `ours` runs here, whatever its address is called."""
    try:
        with open_url(url, timeout=2, direct=ours) as reply:
            return bool(reply.status == 200)
    except OSError:
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


def write_access(urls: Urls, state: Path = STATE) -> None:
    """Write what the user's own commands need: the profile that pyproject.toml points to, `env`."""
    state = _prepare(state)
    environment = client_environment(urls, state)
    names = (
        "PREFECT_API_URL",
        "PREFECT_API_AUTH_STRING",
        "PREFECT_HOME",
        "PREFECT_SERVER_ANALYTICS_ENABLED",
    )
    lines = ['active = "local"', "[profiles.local]"]
    # A text of JSON is one of TOML, too.
    lines += [f"{name} = {json.dumps(environment[name])}" for name in names if name in environment]
    write_private(state / "prefect" / "profiles.toml", "\n".join(lines) + "\n")
    wanted = ("PREFECT_API_", "MLFLOW_", "HERMESFLOW_", "DO_NOT_TRACK", "NO_PROXY", "no_proxy")
    write_env(state / ENV, {k: v for k, v in environment.items() if k.startswith(wanted)})
