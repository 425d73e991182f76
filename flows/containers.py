"""Servers, object store and workers in containers: `docker/compose.yaml`, started and stopped.

Passwords are made on first start and kept in `docker/.env`, which only its owner can read.
"""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from core.config import Config
from core.errors import UserError
from core.remote import connect, reaching
from flows.compute import local_folder
from flows.servers import Urls, answers, client_environment, say, write_access

FOLDER = Path(__file__).resolve().parent.parent / "docker"
USER = "hermesflow"  # who logs in to Prefect and MLflow, with LOGIN_PASSWORD
PORTS = {"PREFECT_PORT": "4200", "MLFLOW_PORT": "5000", "S3_PORT": "9000"}
START_SECONDS = 300.0
SOCKET = Path("/var/run/docker.sock")


def start(config: Config, folder: Path = FOLDER) -> Urls:
    """Start everything and wait until it answers; the environment then leads there.

    UserError if there is no engine or image, or if something does not come up.
    """
    if local_folder(config.store) is not None:
        raise UserError(
            f"store = {config.store!r} is a folder of this machine, which the parent's container "
            "does not see; set store: s3://hermesflow/store, the object store that is started here"
        )
    compose = _compose()
    image = config.compute.docker.image
    if subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode:
        raise UserError(f"image {image} is not there; build it with `make image`, or pull it")
    say("starting containers (first time: some minutes) ...")
    started = time.monotonic()
    with _stopped_if_it_fails([*compose, *_files(folder)]):
        _run(
            [*compose, *_files(folder), "up", "-d"],
            "the containers could not be started",
            IMAGE=image,
            NETWORK=config.compute.docker.network,
        )
        while (urls := lead_there(folder)) is None:
            if time.monotonic() - started > START_SECONDS:
                raise UserError(
                    f"the servers gave no answer within {START_SECONDS:.0f} s; see "
                    f"`{' '.join([*compose, *_files(folder), 'logs'])}`"
                )
            time.sleep(1.0)
    write_access(urls)
    _make_bucket(config.store)
    say(f"containers ready after {time.monotonic() - started:.0f} s")
    say(f"both pages ask for a login: user {USER}, LOGIN_PASSWORD of {folder / '.env'}")
    return urls


@contextmanager
def _stopped_if_it_fails(compose: list[str]) -> Iterator[None]:
    """Stop the containers if the block fails; they stay, as their logs say why."""
    try:
        yield
    except BaseException:
        subprocess.run([*compose, "stop"], capture_output=True)
        raise


def lead_there(folder: Path = FOLDER) -> Urls | None:
    """Point this process's environment to the servers in containers; None unless they answer."""
    if not (folder / ".env").exists():
        return None
    settings = _settings(folder / ".env")
    urls = Urls(
        f"http://127.0.0.1:{settings['PREFECT_PORT']}",
        f"http://127.0.0.1:{settings['MLFLOW_PORT']}",
        f"{USER}:{settings['LOGIN_PASSWORD']}",
    )
    if not (answers(f"{urls.prefect_api}/health") and answers(f"{urls.mlflow}/health")):
        return None
    os.environ.update(client_environment(urls))
    os.environ.update(
        {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{settings['S3_PORT']}",
            "AWS_DEFAULT_REGION": "us-east-1",
            **{name: settings[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
        }
    )
    return urls


def stop(folder: Path = FOLDER) -> None:
    """Stop the containers; volumes stay."""
    if not (folder / ".env").exists():
        raise UserError(f"{folder / '.env'} is not there, so nothing was started from {folder}")
    _run([*_compose(), *_files(folder), "down"], "the containers could not be stopped")


def _files(folder: Path) -> list[str]:
    # The project's name begins those of containers and volumes.
    project = ["-p", _settings(folder / ".env")["COMPOSE_PROJECT_NAME"]]
    return [*project, "--env-file", str(folder / ".env"), "-f", str(folder / "compose.yaml")]


def _compose() -> list[str]:
    """The command of Compose, by its newer or older name; UserError without it or an engine."""
    try:
        engine = subprocess.run(["docker", "info"], capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError("there is no command docker; install a container engine") from None
    if engine.returncode:
        problem = (engine.stderr.strip().splitlines() or ["no answer"])[-1]
        raise UserError(f"the container engine does not answer ({problem}); start it, or see that "
                        "this user may use it")  # fmt: skip
    for command in (["docker", "compose"], ["docker-compose"]):
        try:
            if not subprocess.run([*command, "version"], capture_output=True).returncode:
                return command
        except FileNotFoundError:
            continue
    raise UserError("there is neither `docker compose` nor docker-compose; install one of them")


def _settings(path: Path) -> Mapping[str, str]:
    """What compose fills in: kept as it is, and made where it is missing."""
    kept: dict[str, str] = {}
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")
    made = {
        "COMPOSE_PROJECT_NAME": "hermesflow",
        "POSTGRES_PASSWORD": secrets.token_hex(16),
        "LOGIN_PASSWORD": secrets.token_hex(12),
        "MLFLOW_SECRET_KEY": secrets.token_hex(16),
        "AWS_ACCESS_KEY_ID": secrets.token_hex(8),
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
        "PREFECT_ENCRYPTION_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        # Who may talk to the engine, which the worker's container does.
        "DOCKER_GROUP": str(SOCKET.stat().st_gid) if SOCKET.exists() else "0",
        **PORTS,
    }
    settings = {**made, **kept}
    missing = {name: value for name, value in made.items() if name not in kept}
    if missing:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.writelines(f"{name}={value}\n" for name, value in missing.items())
    return settings


def _run(command: list[str], problem: str, **variables: str) -> None:
    environment = {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        end = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise UserError(f"{problem}; `{' '.join(command)}` says:\n  {end}")


def _make_bucket(store: str) -> None:
    filesystem, _ = connect(store)
    bucket = urlsplit(store).netloc
    with reaching(filesystem, bucket):
        if not filesystem.exists(bucket):
            filesystem.mkdir(bucket)
