"""Less memory for training: activations computed again, and weights split over processes (FSDP2).

A sharded weight is a DTensor: each process holds a run of its rows, in the order of ranks, and so
of its gradient and moments. A saved state has a file from each process; together they hold every
tensor, so any number of processes may continue from it.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, distributed, nn
from torch.autograd.graph import saved_tensors_hooks

from models.linear import current_autocast


def recompute(blocks: Sequence[nn.Module]) -> None:
    """Keep the inputs of blocks alone for the backward pass, which computes the rest again.

    Blocks may draw nothing at random. Torch's own function for this imports its compiler.
    """
    for block in blocks:
        # Inside of what calls `forward`: FSDP has gathered the weights when a block runs again.
        block.forward = partial(_twice, block.forward)


def _twice(forward: Callable[..., Tensor], states: Tensor, *others: object) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(states, *others)
    call = _Call(partial(forward, states, *others), states.device.type)
    with saved_tensors_hooks(call.pass_over, call.take):
        return forward(states, *others)


class _Call:
    """A block's call, whose tensors for the backward pass are those of a second run, by number."""

    def __init__(self, run: Callable[[], object], device: str) -> None:
        self._run, self._autocast = run, current_autocast(device)
        self._number = 0
        self._kept = dict[int, Tensor]()

    def pass_over(self, _: Tensor) -> int:
        """The number of a tensor, which is not kept."""
        self._number += 1
        return self._number - 1

    def take(self, number: int) -> Tensor:
        """The tensor of a number, which has to be asked for once."""
        if number not in self._kept:
            self._run_again()
        return self._kept.pop(number)

    def _run_again(self) -> None:
        self._kept.clear()
        hooks = saved_tensors_hooks(self._keep, self.take)
        with suppress(_AllKeptError), torch.enable_grad(), self._autocast, hooks:
            self._run()

    def _keep(self, tensor: Tensor) -> int:
        self._kept[len(self._kept)] = tensor.detach()
        if len(self._kept) == self._number:
            raise _AllKeptError
        return len(self._kept) - 1


class _AllKeptError(Exception):
    """The rest of a second run would be for nothing."""


def shard(module: nn.Module, blocks: Sequence[nn.Module], device: str) -> None:
    """Split all weights over the processes; those of a block are whole only while it runs.

    Gradients become sums over processes, as ours are shares of one mean.
    """
    # A third of the time to import torch, which those who do not split should not wait.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(torch.device(device).type, (distributed.get_world_size(),))
    for part in (*blocks, module):
        fully_shard(part, mesh=mesh)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


def local(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this process holds: all, if it is not sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """All rows of a tensor. All processes must call it alike."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class ShardedState:
    """Tensors of a state that files of several processes hold, rows in the order of the files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._names = [set[str]() for _ in paths]
        for names, path in zip(self._names, paths, strict=True):
            with safe_open(path, framework="pt") as file:
                names.update(file.keys())

    def __contains__(self, name: object) -> bool:
        return name in self._names[0]

    def fill(self, name: str, target: Tensor) -> None:
        """Copy into `target`, sharded or not, the rows of tensor `name` that it holds."""
        mine = local(target)
        first = _first_row(target)
        start = 0
        for path in self._paths:
            with safe_open(path, framework="pt") as file:
                stored = file.get_slice(name)
                shape = stored.get_shape()
                if not shape:
                    mine.copy_(file.get_tensor(name))
                    return
                low, high = max(first, start), min(first + len(mine), start + shape[0])
                if low < high:
                    mine[low - first : high - first].copy_(stored[low - start : high - start])
                start += shape[0]


def _first_row(tensor: Tensor) -> int:
    """Where the rows of this process begin."""
    if not hasattr(tensor, "device_mesh"):
        return 0
    # As torch.chunk does: all parts but the last are of equal size, and some may be empty.
    size = -(-tensor.shape[0] // tensor.device_mesh.size())
    start: int = size * tensor.device_mesh.get_local_rank()
    return min(start, len(tensor))
