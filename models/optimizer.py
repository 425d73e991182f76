"""AdamW for a modality, or for all by the first; and what a saved state holds of it.

Several work over the same weights, each with the gradient of its own modality.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from models.base import Modality
from models.preference import branch_settings
from models.sharding import ShardedState, local, whole

if TYPE_CHECKING:
    from core.config import Training


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: matrices decay, embeddings, norms and biases do not."""
    embeddings = {
        id(parameter)
        for child in module.modules()
        if isinstance(child, nn.Embedding)
        for parameter in child.parameters()
    }
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
    chosen = {id(p) for p in decayed}
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in chosen], "weight_decay": 0.0},
    ]


def rate_factor(step: int, num_steps: int, warmup_steps: int, schedule: str) -> float:
    """Share of the learning rate at `step`, counted from 0.

    Rises to 1 over the warm-up, then falls so that it would be 0 one step after the last.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (num_steps - warmup_steps)
    return 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2


class BranchOptimizer:
    """AdamW of one modality; `step` takes that modality's gradient alone."""

    def __init__(self, module: nn.Module, modality: Modality, training: Training) -> None:
        self.modality = modality
        self._settings = branch_settings(training, modality)
        self._max_norm = training.max_grad_norm
        self._names = {p: name for name, p in module.named_parameters() if p.requires_grad}
        self._groups = decay_groups(module, training.weight_decay)
        self._state: dict[nn.Parameter, dict[str, Tensor]] = {}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weights, in the order in which gradients are given."""
        return list(self._names)

    def clip(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Scale the gradients in place to the largest norm allowed; the norm before."""
        given = [gradient for gradient in gradients if gradient is not None]
        norm = whole(torch.nn.utils.get_total_norm(given))
        for gradient in given:
            local(gradient).mul_(torch.clamp(self._max_norm / (norm + 1e-6), max=1.0))
        return norm

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], factor: float) -> float:
        """Move the weights along clipped gradients; the learning rate used.

        By AdamW as a function: torch's class imports its compiler, which takes seconds.
        """
        rate = factor * self._settings.learning_rate
        along = {p: g for p, g in zip(self._names, gradients, strict=True) if g is not None}
        for group in self._groups:
            moved = [parameter for parameter in group["params"] if parameter in along]
            if not moved:
                continue
            states = [self._moments(parameter) for parameter in moved]
            adamw(
                list[Tensor](moved),
                [along[parameter] for parameter in moved],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                lr=rate,
                weight_decay=group["weight_decay"],
                beta1=0.9,
                beta2=0.999,
                eps=1e-8,
                fused=True,
                amsgrad=False,
                maximize=False,
            )
        return rate

    def _moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        if parameter not in self._state:
            self._state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return self._state[parameter]

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by `modality.kind.weight`; what this process holds of them."""
        return {
            f"{self.modality}.{kind}.{self._names[parameter]}": local(value)
            for parameter, moments in self._state.items()
            for kind, value in moments.items()
        }

    @torch.no_grad()
    def restore(self, state: ShardedState) -> None:
        """Take over what `state` gave."""
        for parameter, name in self._names.items():
            if f"{self.modality}.step.{name}" in state:
                for kind, value in self._moments(parameter).items():
                    state.fill(f"{self.modality}.{kind}.{name}", value)
