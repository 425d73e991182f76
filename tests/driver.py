"""The loop as a process of its own, for tests that disturb it: `python -m tests.driver STORE`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from core.command import run_command
from core.runtime import setup_logging
from tests.loops import play, quick

ROOT = Path(__file__).parent.parent
NO_DIGEST = ("register",)  # its reason holds words about MLflow


def start(
    store: Path | str, environment: Mapping[str, str] | None = None, **options: object
) -> subprocess.Popen[str]:
    """The loop in a process group of its own; what it says comes by its stdout."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.driver", str(store)],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,  # type: ignore[call-overload]
    )


def finish(process: subprocess.Popen[str], seconds: float = 120.0) -> tuple[int, str]:
    """Exit code and output of a loop that ends by itself."""
    output, _ = process.communicate(timeout=seconds)
    return process.returncode, output


def digests(store: Path) -> dict[tuple[str, str], str]:
    """Digest of every artifact of a local store by stage and key."""
    found = [json.loads(p.read_text(encoding="utf-8")) for p in store.glob("*/*/manifest.json")]
    return {(m["stage"], m["key"]): m["digest"] for m in found if m["stage"] not in NO_DIGEST}


def main() -> int:
    """One iteration with nobody watching."""
    setup_logging()
    return run_command(lambda: play(quick(sys.argv[1])))


if __name__ == "__main__":
    sys.exit(main())
