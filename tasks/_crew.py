"""A stage in several processes of this machine, each with a share of it or as peers that train.

The processes are told their work on stdin, tell what happens on stdout, a JSON document a line, and
end when stdin does, so none outlives the process that has started them.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from core.artifact import ArtifactRef
from core.config import Config, Runtime
from core.errors import UserError
from core.ours import ours_first
from core.progress import OBSERVE_SECONDS, Progress, beat, progress
from core.runtime import setup_logging
from core.stage import (
    WHOLE,
    Inputs,
    ProgressFactory,
    Share,
    Stage,
    StageResult,
    as_lists,
    run_share,
    run_stage,
    stage_key,
)
from core.store import Store

LAST_WORDS_SECONDS = 2.0  # how long others may still say why, after one has failed
EXIT_SECONDS = 5.0
SAVE_SECONDS = 20.0  # that processes which train have to save their state when all is to end

Event = dict[str, Any]


def run_on_machine(
    stage: Stage, config: Config, store: Store, inputs: Inputs, share: Share = WHOLE
) -> StageResult | None:
    """As `core.stage.run_share`, in `runtime.processes` processes if the stage can be shared."""
    num = num_processes(config.runtime) if stage.splits or stage.meets else 1
    key = stage_key(stage, config, inputs)
    if num == 1 or store.find(stage.name, key) is not None:
        return run_share(stage, config, store, inputs, share)
    started = time.monotonic()
    with (
        stage.around(config) as ready,
        _Crew(stage, ready, store, inputs, share, num) as crew,
    ):
        crew.wait()
    ref = store.find(stage.name, key)
    return None if ref is None else StageResult(ref, False, time.monotonic() - started)


def num_processes(runtime: Runtime) -> int:
    """How many processes of this machine share a stage."""
    if runtime.device == "cpu":
        return max(1, runtime.processes)
    num_gpus = len(_gpus())
    if runtime.device != "cuda":
        if runtime.processes > 1:
            raise UserError(
                f"runtime.device = {runtime.device} names one GPU for runtime.processes = "
                f"{runtime.processes}; set device to cuda"
            )
        return 1
    if runtime.processes > num_gpus:
        raise UserError(
            f"runtime.processes = {runtime.processes}, but {num_gpus} GPUs are visible here; set "
            "it to 0 for one process on each"
        )
    return max(1, runtime.processes or num_gpus)


def _gpus() -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    num = torch.cuda.device_count()
    return [str(i) for i in range(num)] if visible is None else visible.split(",")[:num]


@dataclass
class _Member:
    """One process, and what it has said."""

    process: subprocess.Popen[str]
    listener: threading.Thread
    finished: bool = False
    error: str | None = None


class _Step:
    """A step of the stage, as it is shown here for all processes that do it."""

    def __init__(self, bar: Progress, num: int) -> None:
        self.bar, self._num = bar, num
        self._counts: dict[int, tuple[int, int]] = {}

    def advance(self, index: int, done: int, total: int) -> None:
        """Process `index` has done so many of its units."""
        self._counts[index] = (done, total)
        self.bar.extend(sum(total for _, total in self._counts.values()))
        self.bar.update(sum(done for done, _ in self._counts.values()) - self.bar.done)
        if len(self._counts) == self._num and self.bar.done == self.bar.total:
            self.bar.close()


class _Crew:
    """The processes of a stage; what still runs when the block ends is ended."""

    def __init__(
        self,
        stage: Stage,
        config: Config,
        store: Store,
        inputs: Inputs,
        share: Share,
        num: int,
    ) -> None:
        self._stage, self._num = stage, num
        self._events: queue.Queue[tuple[int, Event]] = queue.Queue()
        self._steps: dict[str, _Step] = {}
        self._members: list[_Member] = []
        job = {
            "module": stage.body.__module__,
            "stage": stage.name,
            "config": config.model_dump(mode="json"),
            "store": store.uri,
            "inputs": {
                name: [asdict(ref) for ref in refs]
                for name, refs in as_lists(stage, inputs).items()
            },
        }
        self._meeting_place = _meeting_place() if stage.meets else None
        for index in range(num):
            mine = [share.index + share.count * index, share.count * num]
            own = {"share": mine, "first": index == 0}
            self._start(index, job | own, config.runtime.device)

    def __enter__(self) -> _Crew:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for step in self._steps.values():
            step.bar.close()
        if self._stage.meets and _is_signal(error):
            self._let_save()
        for member in self._members:
            if member.process.stdin:
                member.process.stdin.close()
        deadline = time.monotonic() + EXIT_SECONDS
        for member in self._members:
            try:
                member.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()
            member.listener.join()

    def _let_save(self) -> None:
        """Ask the processes to end after their current step, and wait for a while."""
        for member in self._members:
            member.process.terminate()
        deadline = time.monotonic() + SAVE_SECONDS
        for member in self._members:
            with suppress(subprocess.TimeoutExpired):
                member.process.wait(max(0.0, deadline - time.monotonic()))

    def wait(self) -> None:
        """Until all have finished; UserError with the first reason why one has not."""
        failed: float | None = None
        while not all(member.finished for member in self._members):
            left = None if failed is None else failed + LAST_WORDS_SECONDS - time.monotonic()
            try:
                index, event = self._events.get(timeout=left and max(left, 0.0))
            except queue.Empty:
                break
            if self._take(index, event) and failed is None:
                failed = time.monotonic()
        if failed is not None:
            raise UserError(self._reason())

    def _start(self, index: int, job: Mapping[str, Any], device: str) -> None:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tasks._crew"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=ours_first() | self._environment(index, device),
        )
        assert process.stdin is not None
        listener = threading.Thread(target=self._listen, args=(index, process), daemon=True)
        self._members.append(_Member(process, listener))
        listener.start()
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()

    def _environment(self, index: int, device: str) -> dict[str, str]:
        environment = {"LOCAL_WORLD_SIZE": str(self._num)}
        if self._meeting_place is not None:
            return environment | {
                "RANK": str(index),
                "LOCAL_RANK": str(index),
                "WORLD_SIZE": str(self._num),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self._meeting_place.port),
                # Processes connect to a store that is there, and none of them hosts it.
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            }
        return environment | ({"CUDA_VISIBLE_DEVICES": _gpus()[index]} if device == "cuda" else {})

    def _listen(self, index: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._events.put((index, json.loads(line)))
        self._events.put((index, {"code": process.wait()}))

    def _take(self, index: int, event: Event) -> bool:
        """Show what a process says; whether it has failed."""
        member = self._members[index]
        if "values" in event:
            self._step(event["step"]).bar.values(event["values"])
        elif "total" in event:
            self._step(event["step"]).advance(index, event["done"], event["total"])
        elif "error" in event:
            member.error = event["error"]
            return True
        elif event["code"] == 0:
            member.finished = True
        else:
            return True
        return False

    def _step(self, description: str) -> _Step:
        if description not in self._steps:
            # Of peers the first alone shows what all do.
            num = 1 if self._stage.meets else self._num
            self._steps[description] = _Step(progress(description, 0), num)
        return self._steps[description]

    def _reason(self) -> str:
        codes = [member.process.poll() for member in self._members]
        for number, (member, code) in enumerate(zip(self._members, codes, strict=True), 1):
            # What the others say then is that they miss this one.
            if code is not None and code < 0 and member.error is None:
                return (
                    f"process {number} of {self._num} was ended by signal {-code}"
                    f"{' (for want of memory?)' if code == -9 else ''}; run it again: what is "
                    "done is kept"
                )
        errors = [member.error for member in self._members if member.error]
        if errors:
            return errors[0]
        return f"a process of stage {self._stage.name} failed; its traceback stands above"


def _is_signal(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C or SIGTERM, under whatever name the caller has it raised."""
    return error is not None and not isinstance(error, Exception)


def _meeting_place() -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


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


def main() -> int:
    """Do the share of a stage that stdin describes."""
    # What libraries print must not come between the events.
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    job = json.loads(sys.stdin.readline())
    # Ctrl-C reaches all processes of a terminal; the one that has started this one says what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(event: Event) -> None:
        print(json.dumps(event), file=events, flush=True)

    setup_logging(logging.INFO if job["first"] else logging.ERROR)
    try:
        _work(job, lambda description, total: _Told(description, total, tell))
    except UserError as error:
        tell({"error": str(error)})
        return 2
    return 0


def _work(job: Mapping[str, Any], progress: ProgressFactory) -> None:
    module = importlib.import_module(job["module"])
    stages = [value for value in vars(module).values() if isinstance(value, Stage)]
    [stage] = [stage for stage in stages if stage.name == job["stage"]]
    config, store = Config.model_validate(job["config"]), Store(job["store"])
    inputs = {name: [ArtifactRef(**ref) for ref in refs] for name, refs in job["inputs"].items()}
    if not stage.meets:
        run_share(stage, config, store, inputs, Share(*job["share"]), progress)
        return
    from training.processes import connected

    with connected() as peers:
        peers.gather(lambda: run_stage(stage, config, store, inputs, progress, peers))


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
