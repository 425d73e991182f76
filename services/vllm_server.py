"""A vLLM server for as long as a stage needs one, in an environment and process of its own.

vLLM pins other versions of transformers than ours, so nothing of it is imported here. While no
stage needs it, no server holds a GPU.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from core.cache import cache_folder
from core.config import Endpoint, Serve
from core.errors import UserError
from core.files import writing_to
from core.proxies import no_proxy_for

SUPERVISE = Path(__file__).with_name("supervise.py")
HOST = "127.0.0.1"
LOGS = "vllm"
LOG_LINES = 15
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 15.0  # from asking the server to end until it is ended
# xgrammar, the default, lets raw control characters into strings of bounded length.
OUTPUTS = '{"backend": "guidance", "disable_any_whitespace": true}'

logger = logging.getLogger(__name__)


@contextmanager
def served(endpoint: Endpoint, field: str) -> Iterator[Endpoint]:
    """The endpoint with the address of a server, which is started and ended if it says so.

    `field` names its section of the config. UserError if the server does not come up.
    """
    if endpoint.serve is None:
        yield endpoint
        return
    port = _free_port()
    log = cache_folder() / LOGS / f"{time.strftime('%Y%m%d-%H%M%S')}-{port}.log"
    url = f"http://{HOST}:{port}/v1"
    with _process(endpoint, field, port, log) as process:
        _wait(process, endpoint, field, url, log)
        yield endpoint.model_copy(update={"url": url, "serve": None})


@contextmanager
def _process(
    endpoint: Endpoint, field: str, port: int, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    serve = endpoint.serve
    assert serve is not None
    command = _command(serve, endpoint.model, field, port)
    offline = {"HF_HUB_OFFLINE": "1"} if Path(serve.model).is_dir() else {}
    with writing_to(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("wb")
    logger.info("starting vLLM with %s; its log: %s", serve.model, log)
    with file:
        process = subprocess.Popen(
            [sys.executable, str(SUPERVISE), str(PATIENCE_SECONDS), *command],
            stdin=subprocess.PIPE,  # its end is the sign to end
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "VLLM_NO_USAGE_STATS": "1", **offline, **serve.environment},
            cwd=log.parent,  # our packages must not come before those of its environment
            start_new_session=True,
        )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def _command(serve: Serve, name: str, field: str, port: int) -> list[str]:
    python = Path(serve.python).absolute()  # not resolved: the link says which environment it is
    if not python.is_file():
        raise UserError(
            f"{field}.serve.python = {serve.python!r} does not exist (looked for {python}); make "
            "an environment with `make vllm`, or give the Python of one that has vLLM"
        )
    folder = Path(serve.model)
    return [
        *(str(python), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(folder.absolute()) if folder.is_dir() else serve.model),
        *("--served-model-name", name, "--host", HOST, "--port", str(port)),
        *("--structured-outputs-config", OUTPUTS),
        *serve.arguments,
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(
    process: subprocess.Popen[bytes], endpoint: Endpoint, field: str, url: str, log: Path
) -> None:
    """Return once the server answers; UserError with the end of its log if it does not."""
    assert endpoint.serve is not None
    started = time.monotonic()
    while process.poll() is None:
        if _answers(url):
            logger.info("vLLM answers at %s after %.0f s", url, time.monotonic() - started)
            return
        if time.monotonic() - started > endpoint.serve.start_seconds:
            raise UserError(
                f"{field}.serve: vLLM did not answer within start_seconds = "
                f"{endpoint.serve.start_seconds:g}; raise it, or see its log {log}, which ends:\n"
                f"{_end_of(log)}"
            )
        time.sleep(POLL_SECONDS)
    raise UserError(
        f"{field}.serve: vLLM ended with code {process.returncode} before it answered; correct "
        f"serve.model, serve.arguments or serve.environment; its log {log} ends:\n{_end_of(log)}"
    )


def _answers(url: str) -> bool:
    try:
        with httpx.Client(mounts=no_proxy_for(url), timeout=5.0) as client:
            return client.get(f"{url}/models").status_code == 200
    except httpx.TransportError:
        return False


def _end_of(log: Path) -> str:
    with log.open(encoding="utf-8", errors="replace") as file:
        return "".join(deque(file, LOG_LINES)).rstrip()
