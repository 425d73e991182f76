"""Start a background process and record it: `python -m flows.launch RECORD LOG URL COMMAND...`.

Runs as a process of its own, so that a command killed while it starts a server can never
leave a server that nobody knows of.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil


def main(arguments: list[str]) -> None:
    """Start COMMAND in its own session, output to LOG, and write its identity to RECORD."""
    record, log, url, *command = arguments
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        document = {
            # Process ids are used again; together with its start time an id is unique.
            "pid": process.pid,
            "started": psutil.Process(process.pid).create_time(),
            "url": url,
            "mark": os.environ["HERMESFLOW_PROCESS"],
            "host": socket.gethostname(),
            "boot": boot_id(),
        }
        part = Path(record).with_suffix(".part")
        part.write_text(json.dumps(document), encoding="utf-8")
        os.replace(part, record)
    except BaseException:
        process.kill()  # nobody would know of it
        raise


def boot_id() -> str:
    """What this machine has been called since its start; empty where systems do not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


if __name__ == "__main__":
    main(sys.argv[1:])
