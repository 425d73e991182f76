"""The login that the local servers ask for: on a machine with other users, 127.0.0.1 is theirs too.

One password for both servers, made once and kept in the state folder, which only its owner can
enter. It is handed on by environments and files alone, since everybody sees command lines.
"""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from core.errors import UserError
from core.proxies import PROXIES
from tracking.browser_login import AUTHENTICATE
from tracking.browser_login import OPEN as OPEN_MLFLOW

USER = "hermesflow"
SWITCH = "HERMESFLOW_LOGIN"
LOGIN = "login"  # `user:password`, or an empty line where the servers ask for none
ENV = "env"  # what a shell takes with `source`
MLFLOW_LOGIN = "mlflow/login.ini"
OWNER_ONLY = 0o700


def settle_login(state: Path, running: bool) -> str:
    """`user:password` of the servers, made if there is none; empty if they shall ask for none.

    UserError if servers are `running` with the other setting.
    """
    wanted = login_wanted()
    known = read_login(state)
    if running and bool(known) != wanted:
        asks = "a login" if known else "no login"
        raise UserError(
            f"the local servers that run here ask for {asks}, and {SWITCH} = "
            f"{os.environ.get(SWITCH, 'on')!r} wants it otherwise; stop them with "
            f"`hermesflow down` and start them again, or set {SWITCH}={'on' if known else 'off'}"
        )
    if running or (known and wanted):
        return known
    login = f"{USER}:{secrets.token_urlsafe(24)}" if wanted else ""
    write_private(state / LOGIN, login + "\n")
    return login


def read_login(state: Path) -> str:
    """The login of the servers in this state folder; empty if they ask for none."""
    try:
        return (state / LOGIN).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def login_wanted() -> bool:
    """Whether the servers shall ask for a login, which is the default."""
    setting = os.environ.get(SWITCH) or "on"
    if setting not in ("on", "off"):
        raise UserError(
            f"{SWITCH} = {setting!r}; give on (the default) or off, with which every user of this "
            "machine can use the local servers"
        )
    return setting == "on"


def prefect_login(login: str) -> dict[str, str]:
    """Variables by which Prefect's server asks for a login."""
    return {"PREFECT_SERVER_API_AUTH_STRING": login} if login else {}


def clickable_mlflow(address: str, login: str) -> str:
    """Address of one of MLflow's pages by which a browser is logged in as well."""
    if not login:
        return address
    parts = urlsplit(address)
    netloc = f"{login}@{parts.netloc}"
    return urlunsplit(parts._replace(netloc=netloc, path=f"/{OPEN_MLFLOW}"))


def mlflow_login(state: Path, login: str) -> dict[str, str]:
    """Variables by which MLflow's server asks for a login; writes their file of settings."""
    if not login:
        return {}
    user, _, password = login.partition(":")
    # MLflow makes its user once, so another password needs another table of users.
    users = f"users-{sha256(login.encode()).hexdigest()[:8]}.db"
    lines = [
        "[mlflow]",
        "default_permission = NO_PERMISSIONS",
        f"database_uri = sqlite:///mlflow/{users}",  # below the folder that the server runs in
        f"admin_username = {user}",
        f"authorization_function = {AUTHENTICATE}",
        # Else every request would take the time of hashing a password, which is long on purpose.
        "auth_cache_ttl_seconds = 3600",
    ]
    write_private(state / MLFLOW_LOGIN, "\n".join(lines) + "\n")
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(state / MLFLOW_LOGIN),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
    }


def client_login(login: str) -> dict[str, str]:
    """Variables by which clients of both servers log in."""
    user, _, password = login.partition(":")
    if not user:
        return {}
    return {
        "PREFECT_API_AUTH_STRING": login,
        "MLFLOW_TRACKING_USERNAME": user,
        "MLFLOW_TRACKING_PASSWORD": password,
    }


def write_env(path: Path, variables: Mapping[str, str]) -> None:
    """Write variables for `source` in a shell."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    # Prefect's client does not start with proxies of these kinds, whatever it is to reach.
    lines += [f'case "${{{name}:-}}" in socks:*|socks4*) unset {name};; esac' for name in PROXIES]
    write_private(path, "\n".join(lines) + "\n")


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, at once."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    part.replace(path)
