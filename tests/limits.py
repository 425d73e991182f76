"""How long tests wait for what must end by itself, and where they may listen."""

import socket

HANGS_SECONDS = 600.0  # what takes longer hangs: of two machines, one may be eight times slower


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
