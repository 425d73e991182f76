"""Runs a command until it ends or our stdin does, then ends all that it has started.

A program of its own, started as the leader of a session: whoever started it holds the other end of
its stdin, so when that process dies, however it does, nothing of the session is left.
"""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil

POLL_SECONDS = 0.1


def main() -> int:
    """The exit code of the command, which follows the seconds that all are given to end."""
    patience = float(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # which we send to our whole group
    command = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_stdin, args=(command, patience), daemon=True).start()
    code = command.wait()
    _end_group(patience)
    return code


def _end_with_stdin(command: "subprocess.Popen[bytes]", patience: float) -> None:
    while os.read(0, 1):  # not by sys.stdin, which is locked then when the program ends
        pass
    os.killpg(0, signal.SIGTERM)
    try:
        command.wait(patience)
    except subprocess.TimeoutExpired:
        command.kill()


def _end_group(patience: float) -> None:
    """End what the command has left in our process group."""
    deadline = time.monotonic() + patience
    os.killpg(0, signal.SIGTERM)
    while (others := _others()) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    for pid in others:
        os.kill(pid, signal.SIGKILL)


def _others() -> list[int]:
    return [pid for pid in psutil.pids() if pid != os.getpid() and _group(pid) == os.getpgrp()]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


if __name__ == "__main__":
    sys.exit(main())
