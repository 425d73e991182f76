"""Cases of Pair-DPO, of families whose pictures are drawn code by code.

Shapes: B pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.losses import dpo_loss
from models.nn.packing import Tree, pack_trees
from models.nn.pairs import PackedPairs
from models.parity.case import Arrays, Case, relative, scaled
from models.protocol import BranchLogps, Modality

NORMS = 1e-4
"""Of norms over up to 280 tensors."""
Gradients = Callable[[Tensor], Mapping[str, Tensor]]
"""Of a loss by published names, in the order of the published norms."""


class Scorer(Protocol):
    """A model of a family."""

    @property
    def tokenizer(self) -> Any:
        """With the ids of special tokens."""
        ...

    @property
    def pair_module(self) -> Callable[[PackedPairs], BranchLogps]:
        """What scores packed pairs."""
        ...


def preference_cases(
    policy: Scorer,
    reference: Scorer,
    trees: Mapping[Modality, Sequence[Tree]],
    expected: Arrays,
    beta: float,
    gradients: Gradients,
    *,
    sums: float,
    least_norm: float,
) -> Iterator[Case]:
    """Log-probabilities within `sums`, margins, losses by pair and by batch, gradients.

    Norms below `least_norm` may be off by as much as that one.
    """
    logps = {
        (who, modality): _logps(model, trees[modality], modality)
        for modality in trees
        for who, model in (("policy", policy), ("reference", reference))
    }
    for index, modality in enumerate(trees):
        for who in ("policy", "reference"):
            wanted = expected[f"dpo_{who}_logps"][:, index]
            yield relative(f"dpo/{who}_{modality}", logps[who, modality], wanted, sums)
    margins = {
        modality: (logps["policy", modality] - logps["reference", modality].detach())
        @ torch.tensor([1.0, -1.0])
        for modality in trees
    }
    scale = float(np.abs(expected["dpo_policy_logps"]).sum())
    both = torch.stack([*margins.values()], dim=1)
    yield scaled("dpo/margins", both, expected["dpo_margins"], scale)
    by_pair = {
        str(modality): dpo_loss(
            *logps["policy", modality].unbind(1),
            *logps["reference", modality].detach().unbind(1),
            beta=beta,
        ).mean()
        for modality in trees
    }
    by_batch = {
        str(modality): -F.logsigmoid(beta * margin.sum()) for modality, margin in margins.items()
    }
    for stem, losses in (("dpo_mean", by_pair), ("dpo_batchsum", by_batch)):
        losses["total"] = torch.stack([*losses.values()]).sum()
        for kind, loss in losses.items():
            # A loss moves by at most beta times what its margin does.
            wanted = expected[f"{stem}_{kind}_loss"]
            yield scaled(f"{stem}/{kind}_loss", loss, wanted, beta * scale)
            if f"{stem}_{kind}_grad_norms" in expected:
                yield from _gradient_cases(stem, kind, gradients(loss), expected, least_norm)


def gradients_of(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Of a loss by names of weights; zeros for what it does not reach."""
    network.zero_grad()
    loss.backward(retain_graph=True)
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in network.named_parameters()
    }


def _logps(model: Scorer, trees: Sequence[Tree], modality: Modality) -> Tensor:
    """[B,2], of the chosen and of the rejected branch."""
    batch = pack_trees(trees, model.tokenizer.special.pad)
    found = model.pair_module(PackedPairs(batch, len(trees), modality))
    return torch.stack([found.chosen_logps_B, found.rejected_logps_B], dim=1)


def _gradient_cases(
    stem: str, kind: str, gradients: Mapping[str, Tensor], expected: Arrays, least_norm: float
) -> Iterator[Case]:
    wanted = expected[f"{stem}_{kind}_grad_norms"]
    norms = np.array([float(gradient.norm()) for gradient in gradients.values()])
    error = np.abs(norms - wanted) / np.maximum(wanted, least_norm)
    yield Case(f"{stem}/{kind}_grad_norms", float(error.max()), NORMS)
    whole = sorted(name for name in expected if name.startswith("grad_"))
    for name in whole if (stem, kind) == ("dpo_mean", "total") else ():
        got, of_name = gradients[name.removeprefix("grad_")], expected[name]
        error = np.abs(got.numpy() - of_name.reshape(got.shape)).max() / np.abs(of_name).max()
        yield Case(f"{stem}/{name}", float(error), NORMS)
