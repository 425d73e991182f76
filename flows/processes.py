"""Background processes of ours: their records, whether they live, and how they end."""

import json
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from flows.launch import boot_id

MARK = "HERMESFLOW_PROCESS"
STOP_SECONDS = 15.0
CLOCK_SECONDS = 2.0  # start times are wall-clock times, and the clock gets corrected


@dataclass(frozen=True)
class Record:
    """A process that we started: the id and start time identify it, `url` is what it serves.

    `mark` is in its environment and in those of its descendants. Its machine is told by name and
    boot, since machines share folders, are renamed, and start anew.
    """

    pid: int
    started: float
    url: str
    mark: str
    host: str = ""
    boot: str = ""

    @property
    def elsewhere(self) -> bool:
        """Whether it was started on another machine, where it may be running."""
        return bool(self.host) and self.host != socket.gethostname() and self.boot != boot_id()

    @property
    def alive(self) -> bool:
        """Whether this very process runs here; another one with the same id does not count."""
        if self.elsewhere:
            return False
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < CLOCK_SECONDS
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def read_record(path: Path) -> Record | None:
    """The record in a file, None if there is none or it is unreadable."""
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def launch(
    record: Path, log: Path, url: str, command: Sequence[str], environment: Mapping[str, str]
) -> Record:
    """Start a background process that outlives this one; returns once it is on record."""
    launcher = [sys.executable, str(Path(__file__).with_name("launch.py"))]
    subprocess.run(
        [*launcher, str(record), str(log), url, *command],
        env={**environment, MARK: uuid.uuid4().hex},
        cwd=record.parent,
        check=True,
        start_new_session=True,  # Ctrl-C in the terminal must not reach it
    )
    started = read_record(record)
    assert started is not None
    return started


def listens(record: Record, port: int) -> bool:
    """Whether the recorded process, or what descends from it, holds this port."""
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for process in _family(record)
        for connection in _connections(process)
    )


def is_left(record: Record) -> bool:
    """Whether the recorded process, or anything that descends from it, runs."""
    return bool(_family(record))


def stop(record_path: Path) -> bool:
    """End a recorded process and what it started; whether anything had to be ended."""
    record = read_record(record_path)
    processes = [] if record is None else _family(record)
    for process in processes:
        _signal(process, force=False)
    _, alive = psutil.wait_procs(processes, timeout=STOP_SECONDS)
    for process in alive:
        _signal(process, force=True)
    psutil.wait_procs(alive, timeout=STOP_SECONDS)
    record_path.unlink(missing_ok=True)
    return bool(processes)


def _family(record: Record) -> list[psutil.Process]:
    """The recorded process and everything that descends from it.

    By the mark that descendants inherit, since some detach themselves and outlive their parent.
    """
    return [process for process in psutil.process_iter() if _bears(process, record.mark)]


def _bears(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark
    except (psutil.Error, OSError):  # ended meanwhile, or of another user
        return False


def _connections(process: psutil.Process) -> list[Any]:
    try:
        return process.net_connections("tcp")
    except (psutil.Error, OSError):  # ended meanwhile
        return []


def _signal(process: psutil.Process, *, force: bool) -> None:
    try:
        if force:
            process.kill()
        else:
            process.terminate()
    except psutil.NoSuchProcess:
        pass
