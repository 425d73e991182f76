"""AdamW and the learning rate of a step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def make_optimizer(module: nn.Module, rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Torch's fused AdamW over the trained weights; its rate is set anew in each step."""
    groups = decay_groups(module, weight_decay)
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices decay; embeddings, norms and biases do not."""
    embeddings = {id(weight) for weight in _embedding_weights(module)}
    groups = {True: list[nn.Parameter](), False: list[nn.Parameter]()}
    for weight in module.parameters():
        if weight.requires_grad:
            groups[weight.ndim >= 2 and id(weight) not in embeddings].append(weight)
    decays = ((groups[True], weight_decay), (groups[False], 0.0))
    return [{"params": weights, "weight_decay": decay} for weights, decay in decays if weights]


def _embedding_weights(module: nn.Module) -> Iterator[nn.Parameter]:
    for child in module.modules():
        if isinstance(child, nn.Embedding):
            yield from child.parameters()


def rate_factor(step: int, num_steps: int, warmup_steps: int, schedule: str) -> float:
    """Share of the learning rate at `step`, counted from 0.

    Rises to 1 over the warm-up, then falls so that it would be 0 one step after the last.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (num_steps - warmup_steps)
    return 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
