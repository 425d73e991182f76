"""Several processes that train one model, on one machine or many, as torchrun starts them.

Objects go over gloo, whatever the device; gradients over gloo between CPUs and NCCL between GPUs.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import distributed

from core.errors import UserError
from core.process_group import SINGLE, ProcessGroup

T = TypeVar("T")

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
NUM_STARTED = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
WAY_OUT = "start them with torchrun, as docs/how-to/gpus.md shows"


class TorchGroup(ProcessGroup):
    """The processes of torch's default group."""

    def __init__(self) -> None:
        self.size, self.rank = distributed.get_world_size(), distributed.get_rank()

    def gather(self, function: Callable[[], T]) -> list[T]:
        """What `function` gives in each process, by rank."""
        results: list[T | None] = [None] * self.size
        distributed.all_gather_object(results, function())
        return results  # type: ignore[return-value]


@contextmanager
def connected() -> Iterator[ProcessGroup]:
    """The group of this process, for as long as it trains."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or any(n not in os.environ for n in TORCHRUN):
        yield SINGLE
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    yield TorchGroup()
    # Not after an error: the others may be waiting for this process, and torchrun ends them.
    distributed.destroy_process_group()


def process_device(device: str, group: ProcessGroup) -> str:
    """The device of this process: `cuda` is a GPU of its own for each on a machine."""
    if group.size == 1 or device == "cpu":
        return device
    if device != "cuda":
        raise UserError(
            f"runtime.device = {device} names one GPU for {group.size} processes; set it to cuda, "
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


def make_accelerator(
    device: str, group: ProcessGroup, precision: str, *, shared_weights: bool
) -> Accelerator:
    """An accelerator on `device` for exactly these processes; UserError if others were started.

    Without `shared_weights` DDP looks for weights that a modality does not reach.
    """
    # Launchers that are not understood start processes that would each train by itself.
    num_started = max(int(os.environ.get(name, "1")) for name in NUM_STARTED)
    if num_started != group.size:
        raise _unconnected(num_started, group.size)
    if device != "cpu":
        torch.cuda.set_device(torch.device(device).index or 0)
    if group.size > 1:
        # Otherwise accelerate sets a number of threads of its own.
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    # A process may train several times, with another precision each time.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="bf16" if precision == "bfloat16" else "no",
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                gradient_as_bucket_view=True, find_unused_parameters=not shared_weights
            )
        ],
    )
    if accelerator.num_processes != num_started:
        raise _unconnected(num_started, accelerator.num_processes)
    return accelerator


def _unconnected(num_started: int, num_connected: int) -> UserError:
    return UserError(
        f"stage train was started in {num_started} processes, of which {num_connected} are "
        f"connected here; {WAY_OUT}"
    )
