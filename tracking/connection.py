"""The connection to MLflow: made once, given up with one warning when it cannot be had or kept."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit, urlunsplit

from core.config import Tracking
from core.proxies import open_url
from core.secrets import masked

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)
ADDRESS = "MLFLOW_TRACKING_URI"
# A file with `user:password` of the local servers, for runs whose variables others can read.
LOGIN_FILE = "HERMESFLOW_LOGIN_FILE"
USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
PAGES = "HERMESFLOW_MLFLOW_UI"  # by which address people open the server, where it is another one
PROBE_SECONDS = 5.0
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}  # of databases that MLflow takes
SHOWN = 160  # characters of an error
# MLflow's own patience with a server that is gone is several minutes for every call, and it talks.
MANNERS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
WAY_OUT = (
    f"start the local servers with `hermesflow up` and take {ADDRESS} and the login from them by "
    "`source .hermesflow/env`, or set tracking.enabled: false; running the same command again "
    "later fills in what is missing"
)
T = TypeVar("T")


class Connection:
    """A client of one experiment, or nothing: then every attempt gives None."""

    def __init__(
        self,
        client: MlflowClient | None,
        uri: str = "",
        experiment_id: str = "",
        *,
        warn: bool = True,
    ) -> None:
        self._client, self.uri, self.experiment_id = client, uri, experiment_id
        self._level = logging.WARNING if warn else logging.DEBUG

    @property
    def pages(self) -> str:
        """Where the server's pages are opened; empty if it has none."""
        address = os.environ.get(PAGES) or self.uri
        return without_user(address).rstrip("/") if self.uri.startswith("http") else ""

    @property
    def open(self) -> bool:
        """Whether MLflow is used and has answered so far."""
        return self._client is not None

    def attempt(self, call: Callable[[MlflowClient], T]) -> T | None:
        """What `call` returns; None, after one warning for all, once MLflow has failed."""
        if self._client is None:
            return None
        from mlflow.exceptions import MlflowException

        try:
            return call(self._client)
        except (MlflowException, OSError, ImportError) as error:
            self._client = None
            logger.log(
                self._level,
                "MLflow at %s failed (%s); the run goes on without it and all its artifacts are "
                "kept; %s",
                masked(self.uri),
                masked(str(error)).splitlines()[0][:SHOWN],
                WAY_OUT,
            )
            return None


def connect(tracking: Tracking, *, warn: bool = True) -> Connection:
    """Connect to MLFLOW_TRACKING_URI and make the experiment; a closed connection if it fails.

    `warn` is off where another connection of the same run says what is wrong.
    """
    if not tracking.enabled:
        return Connection(None)
    uri = os.environ.get(ADDRESS, "")
    problem = find_problem(uri)
    if problem:
        if warn:
            logger.warning("tracking is off: %s; %s", problem, WAY_OUT)
        return Connection(None)
    for name, value in MANNERS.items():
        os.environ.setdefault(name, value)
    # It would announce every retry; what comes of them is said once.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return _connected(uri, tracking.experiment, warn)


def _connected(uri: str, experiment: str, warn: bool) -> Connection:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=uri)
    except (MlflowException, OSError, ImportError) as error:
        if warn:
            place = masked(uri)
            problem = masked(str(error))
            logger.warning("tracking is off: %s = %s: %s; %s", ADDRESS, place, problem, WAY_OUT)
        return Connection(None)
    connection = Connection(client, uri, warn=warn)
    connection.experiment_id = connection.attempt(lambda c: _experiment(c, experiment)) or ""
    return connection


def take_login() -> None:
    """Let MLflow's clients in this process log in by LOGIN_FILE, unless they have a login."""
    path = os.environ.get(LOGIN_FILE)
    if not path or os.environ.get(USER):
        return
    try:
        login = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        logger.warning("%s = %s cannot be read (%s)", LOGIN_FILE, path, error.strerror)
        return
    user, _, password = login.partition(":")
    if user:
        os.environ |= {USER: user, PASSWORD: password}


def find_problem(uri: str) -> str:
    """What is wrong with an address, in words; found within seconds and without MLflow."""
    take_login()
    if not uri:
        return f"{ADDRESS} is not set"
    if uri.startswith(("http://", "https://")):
        try:
            open_url(f"{without_user(uri).rstrip('/')}/health", timeout=PROBE_SECONDS).close()
        except (OSError, ValueError) as error:
            return masked(f"no MLflow server answers at {ADDRESS} = {uri} ({error})")
    return _database_problem(uri)


def _database_problem(uri: str) -> str:
    """What is wrong with the address of a database, whose password is not shown."""
    parts = urlsplit(uri)
    dialect = parts.scheme.partition("+")[0]
    if dialect not in PORTS:
        return ""
    try:
        host, port = parts.hostname or "localhost", parts.port or PORTS[dialect]
        socket.create_connection((host, port), PROBE_SECONDS).close()
    except (OSError, ValueError) as error:
        return f"no database answers at {ADDRESS} = {masked(uri)} ({error})"
    return ""


def without_user(address: str) -> str:
    """An address that may be shown: people give user and password to their browser."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _experiment(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    for _ in range(2):
        found = client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another run may have made it just now
            continue
    raise MlflowException(f"experiment {name!r} can neither be found nor made")
