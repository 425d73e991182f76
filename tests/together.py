"""Processes that run `python -m tasks.train` together, as torchrun would start them, but quickly.

They are forked from a server that has imported everything already, since importing takes longer
than training.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path

from torch.distributed import TCPStore

from tests.limits import HANGS_SECONDS

Hook = Callable[[int], object]
"""Called with its rank in every process before it starts."""


@dataclass(frozen=True)
class Outcome:
    """How processes have ended, by rank."""

    codes: list[int]
    outputs: list[str]

    @property
    def output(self) -> str:
        return "".join(self.outputs)


def no_hook(rank: int) -> None:
    """Leaves everything as it is."""


def run_together(
    num: int, arguments: Sequence[str] | Sequence[Sequence[str]], folder: Path, hook: Hook = no_hook
) -> Outcome:
    """Run the command in `num` processes; each may have arguments of its own."""
    own = [arguments] * num if isinstance(arguments[0], str) else arguments
    # Hosted here as torchrun does, so no other test can have taken the port meanwhile.
    meeting_place = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    folder.mkdir(parents=True, exist_ok=True)
    processes = []
    for rank in range(num):
        own_rank = dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
        size = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(num))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(meeting_place.port)}
        meet |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1"}
        environment = {**os.environ, **own_rank, **size, **meet}
        target = partial(_run, environment, list(own[rank]), folder / f"{rank}.txt", hook, rank)
        processes.append(_context().Process(target=target))
    for process in processes:
        process.start()
    deadline = time.monotonic() + HANGS_SECONDS
    # As torchrun does: where one fails, the others are ended.
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if any(process.exitcode for process in processes):
            for process in processes:
                process.terminate()
        time.sleep(0.02)
    hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
        process.join()
    outputs = [(folder / f"{rank}.txt").read_text(encoding="utf-8") for rank in range(num)]
    assert not hanging, (hanging, outputs)
    return Outcome([process.exitcode or 0 for process in processes], outputs)


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tasks.train", "pandas"])
    return context


def _run(
    environment: Mapping[str, str], arguments: Sequence[str], output: Path, hook: Hook, rank: int
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    from tasks.train import main

    hook(rank)
    code = main(arguments)
    sys.stdout.flush()
    sys.exit(code)
