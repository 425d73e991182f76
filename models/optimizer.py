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
from models.head import Head
from models.preference import branch_settings
from models.sharding import ShardedState, local, whole

if TYPE_CHECKING:
    from core.config import Training

Moments = dict[str, Tensor]
"""Those of a weight, and the count of its steps."""
MOMENTS = ("exp_avg", "exp_avg_sq")


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


def lean_gradients(module: nn.Module, *, alone: bool) -> None:
    """Let gradients of embedding and head take less memory, where weights are not sharded.

    The head's are added to those that are there. Of a process that is `alone`, embeddings have
    sparse ones, of the rows of tokens that were there; those cannot be summed over processes.
    """
    for part in module.modules():
        if isinstance(part, Head):
            part.adds = True
        if isinstance(part, nn.Embedding):
            part.sparse = alone


def take_gradients(weights: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """What backward passes have left with the weights, and leave nothing; sparse ones coalesced."""
    gradients = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    return [g.coalesce() if g is not None and g.is_sparse else g for g in gradients]


class BranchOptimizer:
    """AdamW of one modality; `step` takes that modality's gradient alone.

    Where embeddings have sparse gradients, rows that never had one have no moments: those of AdamW
    are zero, and move nothing, as embeddings do not decay.
    """

    def __init__(self, module: nn.Module, modality: Modality, training: Training) -> None:
        self.modality = modality
        self._settings = branch_settings(training, modality)
        self._max_norm = training.max_grad_norm
        self._names = {p: name for name, p in module.named_parameters() if p.requires_grad}
        self._groups = decay_groups(module, training.weight_decay)
        self._state: dict[nn.Parameter, Moments] = {}
        embeddings = [part for part in module.modules() if isinstance(part, nn.Embedding)]
        self._tables = {
            weight: _Table(weight)
            for weight in self._names
            if any(part.weight is weight and part.sparse for part in embeddings)
        }

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weights, in the order in which gradients are given."""
        return list(self._names)

    def clip(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Scale the gradients in place to the largest norm allowed; the norm before."""
        given = [_held(gradient) for gradient in gradients if gradient is not None]
        norm = whole(torch.nn.utils.get_total_norm(given))
        factor = torch.clamp(self._max_norm / (norm + 1e-6), max=1.0)
        # All in one, since a GPU takes a gradient in less time than the CPU needs to ask for it.
        if given:
            torch._foreach_mul_([local(gradient) for gradient in given], factor)
        return norm

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], factor: float) -> float:
        """Move the weights along clipped gradients; the learning rate used."""
        rate = factor * self._settings.learning_rate
        along = {p: g for p, g in zip(self._names, gradients, strict=True) if g is not None}
        for group in self._groups:
            moved = [p for p in group["params"] if p in along and p not in self._tables]
            if moved:
                states = [self._moments(parameter) for parameter in moved]
                _adamw(moved, [along[p] for p in moved], states, rate, group["weight_decay"])
        for parameter, table in self._tables.items():
            if parameter in along:
                table.step(along[parameter], rate)
        return rate

    def _moments(self, parameter: nn.Parameter) -> Moments:
        if parameter not in self._state:
            self._state[parameter] = _no_moments(parameter)
        return self._state[parameter]

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by `modality.kind.weight`; what this process holds of them."""
        tables = {p: table.whole() for p, table in self._tables.items() if table.is_begun}
        return {
            f"{self.modality}.{kind}.{self._names[parameter]}": local(value)
            for parameter, moments in {**self._state, **tables}.items()
            for kind, value in moments.items()
        }

    @torch.no_grad()
    def restore(self, state: ShardedState) -> None:
        """Take over what `state` gave."""
        for parameter, name in self._names.items():
            if f"{self.modality}.step.{name}" not in state:
                continue
            table = self._tables.get(parameter)
            moments = _no_moments(parameter) if table else self._moments(parameter)
            for kind, value in moments.items():
                state.fill(f"{self.modality}.{kind}.{name}", value)
            if table:
                table.take(moments)


class _Table:
    """The moments of an embedding [V,D]: of the R rows that ever had a gradient."""

    def __init__(self, weight_VD: nn.Parameter) -> None:
        self._weight_VD = weight_VD
        self._place_V = torch.full((len(weight_VD),), -1, device=weight_VD.device)
        self._rows_R = self._place_V[:0]
        self._moments = _no_moments(weight_VD[:0])

    @property
    def is_begun(self) -> bool:
        """Whether there has been a step."""
        return bool(self._moments["step"])

    def step(self, gradient_VD: Tensor, rate: float) -> None:
        """Move those rows along a coalesced gradient, which some of them may not have any more."""
        rows_N = gradient_VD.indices()[0]
        self._add(rows_N[self._place_V[rows_N] < 0])
        moved_RD = self._weight_VD[self._rows_R]
        along_RD = torch.zeros_like(moved_RD)
        along_RD[self._place_V[rows_N]] = gradient_VD.values()
        _adamw([moved_RD], [along_RD], [self._moments], rate, 0.0)
        self._weight_VD[self._rows_R] = moved_RD

    def whole(self) -> Moments:
        """Moments of all rows."""
        moments = _no_moments(self._weight_VD) | {"step": self._moments["step"]}
        for kind in MOMENTS:
            moments[kind][self._rows_R] = self._moments[kind]
        return moments

    def take(self, moments: Moments) -> None:
        """Continue from moments of all rows."""
        used_V = torch.stack([moments[kind].any(dim=1) for kind in MOMENTS]).any(dim=0)
        self._add(used_V.nonzero()[:, 0])
        self._moments = {"step": moments["step"]} | {k: moments[k][self._rows_R] for k in MOMENTS}

    def _add(self, rows_N: Tensor) -> None:
        """Have moments for more rows; in their order, as after a restart."""
        if not len(rows_N):
            return
        old_R = self._rows_R
        self._rows_R = torch.cat((old_R, rows_N)).sort().values
        self._place_V[self._rows_R] = torch.arange(len(self._rows_R), device=rows_N.device)
        for kind in MOMENTS:
            grown_RD = self._weight_VD.new_zeros(len(self._rows_R), self._weight_VD.shape[1])
            grown_RD[self._place_V[old_R]] = self._moments[kind]
            self._moments[kind] = grown_RD


def _held(gradient: Tensor) -> Tensor:
    """What there is of a gradient: of a sparse one, rows."""
    return gradient.values() if gradient.is_sparse else gradient


def _no_moments(weight: Tensor) -> Moments:
    step = torch.zeros((), device=weight.device)
    return {"step": step, **{kind: torch.zeros_like(weight) for kind in MOMENTS}}


def _adamw(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: Sequence[Moments],
    rate: float,
    weight_decay: float,
) -> None:
    """By AdamW as a function: torch's class imports its compiler, which takes seconds."""
    first, second = MOMENTS
    adamw(
        list(weights),
        list(gradients),
        [of_one[first] for of_one in moments],
        [of_one[second] for of_one in moments],
        [],
        [of_one["step"] for of_one in moments],
        lr=rate,
        weight_decay=weight_decay,
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
        fused=True,
        amsgrad=False,
        maximize=False,
    )
