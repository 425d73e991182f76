"""How long tests wait for what must end by itself, where they may listen, and other processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
HANGS_SECONDS = 600.0  # what takes longer hangs: of two machines, one may be eight times slower


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def own_address() -> str:
    """The address of this machine in a network, 127.0.0.1 if it is in none; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def run_python(
    *arguments: str | Path, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, and what it says."""
    command = [sys.executable, *map(str, arguments)]
    variables = {**os.environ, **environment}
    options = {"capture_output": True, "text": True, "timeout": HANGS_SECONDS}
    return subprocess.run(command, cwd=cwd, env=variables, check=False, **options)
