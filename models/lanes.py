"""Two halves of a batch at once, each in a thread with half of torch's, where that is a CPU.

A pass of a model leaves a core idle for much of its time: what is between the large products runs
in one thread. Two passes fill each other's gaps. The memory is that of the whole, but for what each
pass has once (a part of the vocabulary's logits, gradients).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Generic, TypeVar

import torch

from models.linear import current_autocast

Part = TypeVar("Part")
Result = TypeVar("Result")

LANES = 2
LEAST_ROWS = 256
"""Of a step of text. The interpreter's part of one with fewer takes longer than torch's, and two
threads cannot do that at once."""


def parts(num_records: int, device: torch.device, step_rows: int = LEAST_ROWS) -> list[slice]:
    """Runs of records for `at_once`, whose steps have so many rows together.

    One alone on a GPU, which has its own ways to be busy.
    """
    halves = device.type == "cpu" and torch.get_num_threads() >= LANES
    if not halves or num_records < LANES or step_rows < LEAST_ROWS:
        return [slice(0, num_records)]
    middle = (num_records + 1) // 2
    return [slice(0, middle), slice(middle, num_records)]


def at_once(work: Callable[[Part], Result], given: Sequence[Part]) -> list[Result]:
    """What `work` gives for one part, or for each of two at the same time.

    Both see the caller's grad mode and autocast. The first runs in this thread; when it ends by an
    exception, by Ctrl-C for example, the other is made to end too.
    """
    if len(given) == 1:
        return [work(given[0])]
    first, second = given
    num_threads = torch.get_num_threads()
    torch.set_num_threads(num_threads // LANES)
    other = _Lane(work, second)
    try:
        other.start()
        return [work(first), other.result()]
    finally:
        other.end()
        torch.set_num_threads(num_threads)


class _EndedError(SystemExit):
    """Raised in a thread whose result nobody waits for."""


class _Lane(Generic[Part, Result]):
    """A part of the work in a thread of its own."""

    def __init__(self, work: Callable[[Part], Result], part: Part) -> None:
        self._work, self._part = work, part
        self._results: list[Result] = []
        self._error: BaseException | None = None
        # What torch keeps for each thread.
        self._grad, self._inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self._autocast, self._num_threads = current_autocast("cpu"), torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def result(self) -> Result:
        """Wait for it; raises what the work has raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._results[0]

    def end(self) -> None:
        """Interrupt the work if it still runs, and wait until it has left."""
        if self._thread.is_alive():
            ident, kind = ctypes.c_ulong(self._thread.ident or 0), ctypes.py_object(_EndedError)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, kind)
            self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(self._num_threads)
        with suppress(_EndedError), ExitStack() as modes:
            modes.enter_context(torch.inference_mode(self._inference))
            modes.enter_context(torch.set_grad_enabled(self._grad))
            modes.enter_context(self._autocast)
            try:
                self._results.append(self._work(self._part))
            except Exception as error:
                self._error = error
