"""The loop as a process of its own, for tests that disturb it.

`python -m tests.driver STORE ITERATIONS [--seed N] [--threads N]` says which stages have ended, as
the real one does; with a seed it is tracked by MLflow.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from core.command import run_command
from core.runtime import setup_logging
from core.stage import StageResult
from core.store import Store
from flows.executors.base import Job
from flows.self_play import SelfPlay
from flows.stages import announce
from tests.limits import HANGS_SECONDS
from tests.loops import Runner, quick
from tracking.runs import open_tracker

ROOT = Path(__file__).parent.parent
NO_DIGEST = ("gate",)  # its opponent may be another one


def command(
    store: Path | str, iterations: int = 1, *, seed: int | None = None, threads: int = 1
) -> list[str]:
    """What starts the loop without Prefect."""
    options = ["--threads", str(threads), *([] if seed is None else ["--seed", str(seed)])]
    return [sys.executable, "-m", "tests.driver", str(store), str(iterations), *options]


def start(
    store: Path | str, iterations: int = 1, seed: int | None = None, mlflow: str = ""
) -> subprocess.Popen[str]:
    """The loop in a process group of its own; what it says comes by its stdout."""
    return subprocess.Popen(
        command(store, iterations, seed=seed),
        cwd=ROOT,
        env={**os.environ, "MLFLOW_TRACKING_URI": mlflow, "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output of a loop that ends by itself."""
    output, _ = process.communicate(timeout=HANGS_SECONDS)
    return process.returncode, output


def digests(store: Path) -> dict[tuple[str, str], str]:
    """Digest of every artifact of a local store by stage and key."""
    found = [json.loads(p.read_text(encoding="utf-8")) for p in store.glob("*/*/manifest.json")]
    return {(m["stage"], m["key"]): m["digest"] for m in found if m["stage"] not in NO_DIGEST}


class Announcing(Runner):
    """Says when a stage has ended."""

    def run(self, job: Job) -> StageResult:
        result = super().run(job)
        how = "cached" if result.cached else f"{result.seconds:.1f} s"
        announce(job.step.label, job.stage.name, how)
        return result


def main() -> int:
    """Some iterations with nobody watching."""
    setup_logging()
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("iterations", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    changes = {} if given.seed is None else {"tracking.enabled": True, "seed": given.seed}
    changes |= {"runtime.threads": given.threads, "iterations": given.iterations}
    config = quick(given.store, **changes)

    def play() -> None:
        Store(config.store).check()
        with open_tracker(config) as tracker:
            SelfPlay(config, tracker, Announcing()).run()

    return run_command(play)


if __name__ == "__main__":
    sys.exit(main())
