"""Seeds, logging and memory figures that need no torch."""

import hashlib
import json
import logging
import re
import resource
import sys
from pathlib import Path

from tqdm import tqdm

from core.secrets import masked

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed that depends on every part and is the same on every machine."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class _BarFriendlyHandler(logging.Handler):
    """Writes log lines above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(masked(self.format(record)), file=sys.stderr)


def setup_logging(level: int = logging.INFO) -> None:
    """Send all log records from `level` up to stderr in the project's one format."""
    handler = _BarFriendlyHandler()
    handler.setFormatter(logging.Formatter(LOG_FORMAT, datefmt="%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Lines for every HTTP request, S3 connection or loaded encoder would drown the rest.
    for name in ("httpx", "httpx2", "botocore", "aiobotocore", "sentence_transformers"):
        logging.getLogger(name).setLevel(logging.WARNING)


def peak_memory_bytes() -> int:
    """The largest resident size this process has had so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Unlike what getrusage says, without what the parent held when it started this process.
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
