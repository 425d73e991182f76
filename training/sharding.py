"""Less memory for training: activation checkpointing, and weights split over processes (FSDP2)."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint


def recompute(blocks: Sequence[nn.Module]) -> None:
    """Keep the inputs of blocks alone for the backward pass, which computes the rest again."""
    for block in blocks:
        # Inside of what calls `forward`: FSDP has gathered the weights when a block runs again.
        # Blocks draw nothing at random, so the generators' states need not be kept.
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )


def shard(module: nn.Module, blocks: Sequence[nn.Module], device: str) -> None:
    """Split all weights over the processes; those of a block are whole only while it runs."""
    mesh = init_device_mesh(torch.device(device).type, (distributed.get_world_size(),))
    for part in (*blocks, module):
        fully_shard(part, mesh=mesh)


def local(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this process holds: all, if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All rows of a tensor. All processes must call it alike."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
