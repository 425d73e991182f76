"""One of several processes that do a stage: `python -m flows.executors.rank FOLDER`."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.progress import OBSERVE_SECONDS, Progress, beat
from core.runtime import setup_logging
from core.stage import ProgressFactory, Shard, Stage, run_shard, run_stage
from flows.executors.base import job_from
from flows.executors.local import JOB, Event

LONGEST_ERROR = 1000  # characters: a line of an event stays below PIPE_BUF, 4096 bytes


class _Told(Progress):
    """A step that another process shows: tells it what happens about once a second."""

    def __init__(self, description: str, total: int, tell: Callable[[Event], None]) -> None:
        self.description, self.total, self.done = description, total, 0
        self._tell = tell
        self._say()

    def update(self, amount: int = 1) -> None:
        beat()
        self.done += amount
        if time.monotonic() - self._told >= OBSERVE_SECONDS:
            self._say()

    def values(self, row: Mapping[str, float]) -> None:
        self._tell({"step": self.description, "values": dict(row)})

    def close(self) -> None:
        self._say()

    def _say(self) -> None:
        self._told = time.monotonic()
        self._tell({"step": self.description, "done": self.done, "total": self.total})


def main(folder: str) -> int:
    """Do the part of this rank in the job that `folder` describes."""
    # What libraries print must not come between the events.
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    job = json.loads(Path(folder, JOB).read_text(encoding="utf-8"))
    rank = int(os.environ["RANK"])
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(event: Event) -> None:
        print(json.dumps(event | {"rank": rank}), file=events, flush=True)

    setup_logging(logging.ERROR if rank else logging.INFO)
    try:
        _work(job, rank, lambda description, total: _Told(description, total, tell))
    except UserError as error:
        text = str(error)
        tell({"error": text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]}..."})
        return 2
    return 0


def _work(document: dict[str, Any], rank: int, progress: ProgressFactory) -> None:
    module = importlib.import_module(document["module"])
    stages = [value for value in vars(module).values() if isinstance(value, Stage)]
    [stage] = [stage for stage in stages if stage.name == document["stage"]]
    job = job_from(stage, document)
    if not stage.distributed:
        index, count = job.shard.index, job.shard.count
        mine = Shard(index + count * rank, count * document["num"])
        run_shard(stage, job.config, job.store, job.inputs, mine, progress)
        return
    from training.processes import connected

    with connected() as group:
        run_stage(stage, job.config, job.store, job.inputs, progress, group)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
