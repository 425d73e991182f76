"""Pair-DPO: one loss over both modalities of homologous pairs (arXiv 2502.12148, eq. 7 to 9).

Pure functions of log-probabilities. Shapes: B pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.losses import (
    dpo_loss,
    joint_dpo_loss,
    length_normalised,
    logratios,
    margins,
    nll_anchor,
    preference_metrics,
)
from models.protocol import MODALITIES, BranchLogps, Modality

if TYPE_CHECKING:
    from core.config import Branch, Training

References = Mapping[Modality, Tensor]
"""[B,2] by modality: log-probabilities of chosen and rejected under the reference, in nats."""


def branch_settings(training: Training, modality: Modality) -> Branch:
    """The settings of one modality."""
    return training.caption if modality == "caption" else training.image


def active_modalities(training: Training) -> list[Modality]:
    """Modalities with a term in the loss; the others are not computed at all."""
    branches = {modality: branch_settings(training, modality) for modality in MODALITIES}
    return [m for m, branch in branches.items() if branch.weight > 0 or branch.nll_weight > 0]


def pair_loss(
    logps: Mapping[Modality, BranchLogps], reference: References, training: Training
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss [B] of each pair over the modalities given, and metrics [B] without gradients.

    `sum` adds one sigmoid term per modality; `joint` has one sigmoid over the summed margins, so
    that one modality may make up for the other. The winner's NLL is added to either.
    """
    terms: list[Tensor] = []
    reward_margins: list[Tensor] = []
    metrics: dict[str, Tensor] = {}
    for modality, branch in logps.items():
        settings = branch_settings(training, modality)
        scores = _scores(branch, reference[modality], settings.length_normalized)
        if settings.weight > 0 and training.objective == "joint":
            reward_margins.append(settings.weight * settings.beta * margins(*scores))
        elif settings.weight > 0:
            terms.append(settings.weight * dpo_loss(*scores, beta=settings.beta))
        nll_B = nll_anchor(branch.chosen_logps_B, branch.chosen_tokens_B)
        if settings.nll_weight > 0:
            terms.append(settings.nll_weight * nll_B)
        of_branch = _metrics(branch, reference[modality], settings.beta, scores)
        metrics |= {f"{modality}/{name}": value for name, value in of_branch.items()}
    if reward_margins:
        terms.append(joint_dpo_loss(reward_margins))
    loss_B = torch.stack(terms).sum(dim=0)
    return loss_B, {"loss": loss_B.detach(), **metrics}


def _scores(
    branch: BranchLogps, reference_B2: Tensor, per_token: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Chosen, rejected, and both under the reference: sums, or means over tokens."""
    sums = (branch.chosen_logps_B, branch.rejected_logps_B, *reference_B2.unbind(dim=1))
    tokens = (branch.chosen_tokens_B, branch.rejected_tokens_B)
    if per_token:
        sums = tuple(map(length_normalised, sums, tokens * 2))
    chosen_B, rejected_B, ref_chosen_B, ref_rejected_B = sums
    return chosen_B, rejected_B, ref_chosen_B, ref_rejected_B


@torch.no_grad()
def _metrics(
    branch: BranchLogps,
    reference_B2: Tensor,
    beta: float,
    scores: tuple[Tensor, Tensor, Tensor, Tensor],
) -> dict[str, Tensor]:
    """Rewards and loss as the preference term sees them, without its weight."""
    chosen_B = logratios(branch.chosen_logps_B, reference_B2[:, 0])
    rejected_B = logratios(branch.rejected_logps_B, reference_B2[:, 1])
    return preference_metrics(*scores, beta=beta) | {
        "loss": dpo_loss(*scores, beta=beta),
        "nll": nll_anchor(branch.chosen_logps_B, branch.chosen_tokens_B),
        # Per token, so that one threshold suits captions and images of any length.
        "logratios/chosen": length_normalised(chosen_B, branch.chosen_tokens_B),
        "logratios/rejected": length_normalised(rejected_B, branch.rejected_tokens_B),
    }
