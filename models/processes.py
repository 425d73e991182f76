"""Several processes that train one model, on one machine or many, as torchrun starts them.

Words go over gloo, whatever the device; gradients over gloo between CPUs and NCCL between GPUs.
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, distributed

from core.errors import UserError
from core.peers import ALONE, EndOfAllError, Peers

T = TypeVar("T")

LEAVE_SECONDS = 1.0
BUCKET_BYTES = 64 * 2**20
"""Gradients summed at once: enough for full speed, little beside the weights."""
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
NUM_STARTED = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
WAY_OUT = 'start them with torchrun, see "Training on several machines" in README.md'


@dataclass(frozen=True)
class _Outcome(Generic[T]):
    """What a process tells the others: a result, or why there is none."""

    host: str
    result: T | None
    problem: str | None


class Processes(Peers):
    """The processes of torch's default group."""

    def __init__(self) -> None:
        self.num, self.rank = distributed.get_world_size(), distributed.get_rank()
        self._over = False  # whether the others know of an error of this process

    def gather(self, function: Callable[[], T]) -> list[T]:
        """What `function` gives in each process, by rank."""
        host = socket.gethostname()
        try:
            mine = _Outcome(host, function(), None)
        except EndOfAllError:
            raise
        except Exception as error:
            if self._over:
                raise
            self._over = True
            known = isinstance(error, UserError)
            problem = str(error) if known else f"{type(error).__name__}: {error}"
            outcomes = _exchange(_Outcome[T](host, None, problem), self.num)
            if known:
                _raise_first_problem(outcomes)
            raise  # a fault keeps its trace, in the process where it happened
        outcomes = _exchange(mine, self.num)
        _raise_first_problem(outcomes)
        return [outcome.result for outcome in outcomes]  # type: ignore[misc]


@contextmanager
def connected() -> Iterator[Peers]:
    """The peers of this process, for as long as it trains."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or any(n not in os.environ for n in TORCHRUN):
        yield ALONE
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    yield Processes()
    # What is left is to exit with our own code; torchrun ends what runs longer than another.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Others may still be reading the last word, and a connection that closes cuts it off.
    time.sleep(LEAVE_SECONDS)
    distributed.destroy_process_group()


def process_device(device: str, peers: Peers) -> str:
    """The device of this process: `cuda` is a GPU of its own for each on a machine."""
    if peers.num == 1 or device == "cpu":
        return device
    if device != "cuda":
        raise UserError(
            f"runtime.device = {device} names one GPU for {peers.num} processes; set it to cuda, "
            "and choose among GPUs by CUDA_VISIBLE_DEVICES"
        )
    local, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= num_gpus:
        raise UserError(
            f"{os.environ.get('LOCAL_WORLD_SIZE', local + 1)} processes were started on a machine "
            f"with {num_gpus} GPUs; start as many as there are GPUs by torchrun --nproc-per-node, "
            "or set runtime.device to cpu"
        )
    return f"cuda:{local}"


def make_accelerator(device: str, peers: Peers, precision: str) -> Accelerator:
    """An accelerator on `device` for exactly these processes, whatever is around."""
    # Launchers that are not understood start processes which train the same, each for itself.
    num_started = max(int(os.environ.get(name, "1")) for name in NUM_STARTED)
    if num_started != peers.num:
        raise _unconnected(num_started, peers.num)
    if device != "cpu":
        torch.cuda.set_device(torch.device(device).index or 0)
    if peers.num > 1:
        # Where nothing is said, accelerate sets a number of threads of its own.
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    # Or the precision of what this process has trained before would have to be the same.
    AcceleratorState._reset_state()
    mixed = "bf16" if precision == "bfloat16" else "no"
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed)
    if accelerator.num_processes != num_started:
        raise _unconnected(num_started, accelerator.num_processes)
    return accelerator


def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their sums over all processes, bit-identical in each."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        with _connection():
            distributed.all_reduce(flat)
        for tensor, summed in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(summed.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.nbytes > BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


def _exchange(mine: _Outcome[T], num: int) -> list[_Outcome[T]]:
    outcomes: list[_Outcome[T] | None] = [None] * num
    with _connection():
        distributed.all_gather_object(outcomes, mine)
    return [outcome for outcome in outcomes if outcome is not None]


def _raise_first_problem(outcomes: Sequence[_Outcome[T]]) -> None:
    """EndOfAllError with the problem of the lowest rank, which is named unless all have it."""
    for rank, outcome in enumerate(outcomes):
        if outcome.problem is not None:
            shared = all(other.problem == outcome.problem for other in outcomes)
            where = "" if shared else f"process {rank} on {outcome.host}: "
            raise EndOfAllError(f"{where}{outcome.problem}")


def _unconnected(num_started: int, num_connected: int) -> UserError:
    return UserError(
        f"stage train was started in {num_started} processes, of which {num_connected} are "
        f"connected here; {WAY_OUT}"
    )


@contextmanager
def _connection() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise EndOfAllError(
            f"the connection to the other processes broke ({reason}); start all of them again: "
            "training continues from the last saved state"
        ) from error
