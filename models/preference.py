"""Pair-DPO on the log-probabilities of both modalities of a batch of homologous pairs.

The loss may couple the modalities, while each has a gradient, a clipping norm and a learning rate
of its own. So it is differentiated with respect to detached log-probabilities here, and whoever
trains carries each modality's gradient through the network by itself.

Shapes: B pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.base import BranchLogps, Modality
from models.losses import (
    dpo_loss,
    joint_dpo_loss,
    length_normalised,
    logratios,
    margins,
    nll_anchor,
    preference_metrics,
)

if TYPE_CHECKING:
    from core.config import Branch, Training


@dataclass(frozen=True)
class ReferenceBranch:
    """Sums of log-probabilities of one modality under the reference, in nats."""

    chosen_logps_B: Tensor
    rejected_logps_B: Tensor


@dataclass(frozen=True)
class PairLoss:
    """Mean loss, its gradient by modality for chosen and rejected log-probabilities, metrics.

    Metrics are numbers in float64 on the device: to read one is to wait for a GPU.
    """

    loss: Tensor
    gradients: Mapping[Modality, tuple[Tensor, Tensor]]
    metrics: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Terms:
    """Four log-probabilities as the preference term sees them: sums, or means over tokens."""

    chosen_B: Tensor
    rejected_B: Tensor
    ref_chosen_B: Tensor
    ref_rejected_B: Tensor

    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.chosen_B, self.rejected_B, self.ref_chosen_B, self.ref_rejected_B


def branch_settings(training: Training, modality: Modality) -> Branch:
    """The settings of one modality."""
    return training.caption if modality == "caption" else training.image


def active_modalities(training: Training) -> list[Modality]:
    """Modalities with a term in the loss; the others are not computed at all."""
    modalities: tuple[Modality, ...] = ("caption", "image")
    chosen = []
    for modality in modalities:
        branch = branch_settings(training, modality)
        if branch.weight > 0 or branch.nll_weight > 0:
            chosen.append(modality)
    return chosen


def pair_loss(
    logps: Mapping[Modality, BranchLogps],
    reference: Mapping[Modality, ReferenceBranch],
    training: Training,
) -> PairLoss:
    """Loss of the objective in `training` over the modalities given."""
    leaves = {modality: _as_leaves(branch) for modality, branch in logps.items()}
    with torch.enable_grad():
        loss = _objective(leaves, reference, training)
    flat = [leaf for b in leaves.values() for leaf in (b.chosen_logps_B, b.rejected_logps_B)]
    gradients = iter(torch.autograd.grad(loss, flat, materialize_grads=True))
    loss = loss.detach()
    metrics = {"loss": loss.double()}
    for modality, branch in logps.items():
        settings = branch_settings(training, modality)
        for name, value in _branch_metrics(branch, reference[modality], settings).items():
            metrics[f"{modality}/{name}"] = value.double()
    return PairLoss(
        loss=loss,
        gradients={modality: (next(gradients), next(gradients)) for modality in logps},
        metrics=metrics,
    )


def _as_leaves(branch: BranchLogps) -> BranchLogps:
    return BranchLogps(
        branch.chosen_logps_B.detach().requires_grad_(),
        branch.rejected_logps_B.detach().requires_grad_(),
        branch.chosen_tokens_B,
        branch.rejected_tokens_B,
    )


def _objective(
    logps: Mapping[Modality, BranchLogps],
    reference: Mapping[Modality, ReferenceBranch],
    training: Training,
) -> Tensor:
    terms: list[Tensor] = []
    reward_margins: list[Tensor] = []
    for modality, branch in logps.items():
        settings = branch_settings(training, modality)
        if settings.weight > 0:
            seen = _terms(branch, reference[modality], settings)
            if training.objective == "joint":
                reward_margins.append(settings.weight * settings.beta * margins(*seen.all()))
            else:
                terms.append(settings.weight * dpo_loss(*seen.all(), beta=settings.beta))
        if settings.nll_weight > 0:
            nll_B = nll_anchor(branch.chosen_logps_B, branch.chosen_tokens_B)
            terms.append(settings.nll_weight * nll_B)
    if reward_margins:
        terms.append(joint_dpo_loss(reward_margins))
    return torch.stack(terms).sum(dim=0).mean()


def _terms(branch: BranchLogps, reference: ReferenceBranch, settings: Branch) -> _Terms:
    chosen, rejected = branch.chosen_logps_B, branch.rejected_logps_B
    ref_chosen, ref_rejected = reference.chosen_logps_B, reference.rejected_logps_B
    if not settings.length_normalized:
        return _Terms(chosen, rejected, ref_chosen, ref_rejected)
    return _Terms(
        length_normalised(chosen, branch.chosen_tokens_B),
        length_normalised(rejected, branch.rejected_tokens_B),
        length_normalised(ref_chosen, branch.chosen_tokens_B),
        length_normalised(ref_rejected, branch.rejected_tokens_B),
    )


@torch.no_grad()
def _branch_metrics(
    branch: BranchLogps, reference: ReferenceBranch, settings: Branch
) -> dict[str, Tensor]:
    """Batch means; rewards and loss as the preference term sees them, without its weight."""
    seen = _terms(branch, reference, settings)
    chosen_B = logratios(branch.chosen_logps_B, reference.chosen_logps_B)
    rejected_B = logratios(branch.rejected_logps_B, reference.rejected_logps_B)
    return preference_metrics(*seen.all(), beta=settings.beta) | {
        "loss": dpo_loss(*seen.all(), beta=settings.beta).mean(),
        "nll": nll_anchor(branch.chosen_logps_B, branch.chosen_tokens_B).mean(),
        # A token, so that one threshold suits captions and images of any length.
        "logratios/chosen": length_normalised(chosen_B, branch.chosen_tokens_B).mean(),
        "logratios/rejected": length_normalised(rejected_B, branch.rejected_tokens_B).mean(),
    }
