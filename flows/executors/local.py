"""A stage in several processes of this machine.

    this process ── launcher (torch's, as in torchrun) ── rank 0, rank 1, ...

The ranks of a stage that trains meet in a process group; those of any other stage do one shard
each. All of them write into one pipe, which this process reads: a JSON line per event, shorter than
PIPE_BUF, so that lines of several writers never mix. They end when their stdin does, which this
process holds open, so none outlives it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core.config import Runtime
from core.errors import UserError
from core.ours import ours_first
from core.progress import Progress, progress
from core.stage import Stage, StageResult
from flows.executors.base import InProcess, Job

JOB = "job.json"
SAVE_SECONDS = 20.0  # that ranks which train have to save their state when all is to end
EXIT_SECONDS = 5.0

Event = dict[str, Any]


class LocalProcesses:
    """Runs jobs in `runtime.processes` processes if their stage can be shared, else in this one."""

    def run(self, job: Job) -> StageResult | None:
        """As `Executor.run`."""
        stage, runtime = job.stage, job.config.runtime
        num = num_processes(runtime) if stage.sharded or stage.distributed else 1
        if num == 1 or job.find() is not None:
            return InProcess().run(job)
        started = time.monotonic()
        with (
            stage.resources(job.config) as ready,
            TemporaryDirectory(prefix="hermesflow-") as folder,
        ):
            document = {
                **replace(job, config=ready).documents(),
                "module": stage.body.__module__,
                "stage": stage.name,
                "num": num,
                # A rank that meets no others sees one GPU alone, its own.
                "own_gpus": runtime.device == "cuda" and not stage.distributed,
            }
            Path(folder, JOB).write_text(json.dumps(document), encoding="utf-8")
            with _launched(folder) as launcher:
                _follow(launcher, stage, num)
        done = job.find()
        return done and StageResult(done.ref, False, time.monotonic() - started)


def num_processes(runtime: Runtime) -> int:
    """How many processes of this machine share a stage."""
    if runtime.device == "cpu":
        return max(1, runtime.processes)
    if runtime.device != "cuda":
        if runtime.processes > 1:
            raise UserError(
                f"runtime.device = {runtime.device} names one GPU for runtime.processes = "
                f"{runtime.processes}; set device to cuda"
            )
        return 1
    import torch

    num_gpus = torch.cuda.device_count()
    if runtime.processes > num_gpus:
        raise UserError(
            f"runtime.processes = {runtime.processes}, but {num_gpus} GPUs are visible here; set "
            "it to 0 for one process on each"
        )
    return max(1, runtime.processes or num_gpus)


@contextmanager
def _launched(folder: str) -> Iterator[subprocess.Popen[str]]:
    """The launcher; when the block ends, it and its ranks are gone."""
    launcher = subprocess.Popen(
        [sys.executable, "-P", "-m", "flows.executors.launcher", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=ours_first(),
        start_new_session=True,  # Ctrl-C in the terminal reaches this process alone
    )
    assert launcher.stdin is not None
    assert launcher.stdout is not None
    try:
        yield launcher
    except BaseException as error:
        # Ctrl-C and SIGTERM, which core/interrupts.py and Prefect raise as what is no Exception.
        if not isinstance(error, Exception):
            launcher.terminate()
            with suppress(subprocess.TimeoutExpired):
                launcher.wait(SAVE_SECONDS)
        raise
    finally:
        launcher.stdin.close()
        try:
            launcher.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            launcher.kill()
            launcher.wait()
        launcher.stdout.close()


def _follow(launcher: subprocess.Popen[str], stage: Stage, num: int) -> None:
    """Show what the ranks do until all have ended; UserError if one has failed."""
    assert launcher.stdout is not None
    steps: dict[str, _Step] = {}
    error = killed = None
    try:
        for line in launcher.stdout:
            event: Event = json.loads(line)
            if "step" in event:
                # Of ranks that train the first alone tells what all do.
                name, shown = event["step"], 1 if stage.distributed else num
                step = steps.setdefault(name, _Step(name, shown))
                step.take(event)
            elif "error" in event:
                error = error or event["error"]
            else:
                killed = event
    finally:
        for step in steps.values():
            step.bar.close()
    if killed:
        number = killed["signal"]
        raise UserError(
            f"process {killed['rank'] + 1} of {num} was ended by signal {number}"
            f"{' (for want of memory?)' if number == 9 else ''}; run it again: what is done is kept"
        )
    if error:
        raise UserError(error)
    if launcher.wait():
        raise UserError(f"a process of stage {stage.name} failed; its traceback stands above")


class _Step:
    """A step of the stage, as it is shown here for all ranks that do it."""

    def __init__(self, name: str, num: int) -> None:
        self.bar: Progress = progress(name, 0)
        self._num = num
        self._counts: dict[int, tuple[int, int]] = {}

    def take(self, event: Mapping[str, Any]) -> None:
        """Show what a rank says of the step: a row of figures, or how much of it is done."""
        if "values" in event:
            self.bar.values(event["values"])
            return
        self._counts[event["rank"]] = event["done"], event["total"]
        self.bar.extend(sum(total for _, total in self._counts.values()))
        self.bar.update(sum(done for done, _ in self._counts.values()) - self.bar.done)
        if len(self._counts) == self._num and self.bar.done == self.bar.total:
            self.bar.close()
