"""What a checkpoint learns from its own samples: one loss over both modalities of a record.

Pure functions of log-probabilities. All of them return the loss of each row and metrics under the
same names: `loss` and what a modality has of its own in it, `loss/caption` and `loss/image`; what
only one objective has is `objective/...`, or `<modality>/...` where it is of one modality.
Shapes: B pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.losses import (
    clipped_gain,
    dpo_loss,
    joint_dpo_loss,
    k3,
    length_normalised,
    logratios,
    margins,
    nll_anchor,
    preference_metrics,
)
from models.protocol import MODALITIES, BranchLogps, Modality

if TYPE_CHECKING:
    from core.config import BestOf, GroupPolicy, Objective, PairDpo

Tensors = Mapping[Modality, Tensor]
References = Tensors
"""[B,2] by modality: log-probabilities of chosen and rejected under the reference, in nats."""


@dataclass(frozen=True)
class Signals:
    """What an objective is given of rows beside their likelihoods, by modality."""

    reference: References = field(default_factory=dict)
    """Empty without a reference."""
    win_scores: Tensors = field(default_factory=dict)
    """[B] of pairs: how good their winners are."""
    advantages: Tensors = field(default_factory=dict)
    """[B,2] of two samples of a group each: how much better than the group they are."""
    shares: Tensors = field(default_factory=dict)
    """[B,2]: what they weigh, so that every group weighs the same; 0 where there is none."""


def objective_loss(
    logps: Mapping[Modality, BranchLogps], signals: Signals, objective: Objective
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss [B] of each row over the modalities given, and metrics [B], by the objective's name."""
    if objective.name == "best_of":
        return best_of_loss(logps, signals.win_scores, objective)
    if objective.name == "group_policy":
        return group_policy_loss(logps, signals, objective)
    return pair_loss(logps, signals.reference, objective)


def active_modalities(objective: Objective) -> list[Modality]:
    """Modalities with a term in the loss; the others are not computed at all."""
    branches = {modality: getattr(objective, modality) for modality in MODALITIES}
    return [
        modality
        for modality, branch in branches.items()
        if branch.weight > 0 or getattr(branch, "nll_weight", 0) > 0
    ]


def knob(objective: Objective, modality: Modality) -> str:
    """The field, with its value, that makes the term of a modality smaller."""
    name = "beta" if objective.name == "pair_dpo" else "weight"
    value = getattr(getattr(objective, modality), name)
    return f"training.objective.{modality}.{name} = {value}"


def terms_of(objective: Objective) -> list[list[Modality]]:
    """Modalities that meet in one term, and so need their likelihoods at once.

    Those of other terms go through the network one after the other, so that the activations of one
    are gone before those of the next are there.
    """
    active = active_modalities(objective)
    joint = objective.name == "pair_dpo" and objective.combine == "joint"
    return [active] if joint else [[modality] for modality in active]


def pair_loss(
    logps: Mapping[Modality, BranchLogps], reference: References, objective: PairDpo
) -> tuple[Tensor, dict[str, Tensor]]:
    """Pair-DPO (arXiv 2502.12148, eq. 7 to 9): loss [B] of each pair over the modalities given.

    L = sum over modalities of -w log sigmoid(beta * margin), with margin = log(policy / reference)
    of the winner less that of the loser; and metrics [B] without gradients. `sum` adds one sigmoid
    term per modality; `joint` has one sigmoid over the summed margins, so that one modality may
    make up for the other. The winner's NLL is added to either.
    """
    shared: list[Tensor] = []
    own: dict[Modality, list[Tensor]] = {modality: [] for modality in logps}
    metrics: dict[str, Tensor] = {}
    for modality, branch in logps.items():
        settings = objective.caption if modality == "caption" else objective.image
        scores = _scores(branch, reference[modality], settings.length_normalized)
        if settings.weight > 0 and objective.combine == "joint":
            shared.append(settings.weight * settings.beta * margins(*scores))
        elif settings.weight > 0:
            own[modality].append(settings.weight * dpo_loss(*scores, beta=settings.beta))
        nll_B = nll_anchor(branch.chosen_logps_B, branch.chosen_tokens_B)
        if settings.nll_weight > 0:
            own[modality].append(settings.nll_weight * nll_B)
        of_branch = _metrics(branch, reference[modality], settings.beta, scores)
        metrics |= {f"{modality}/{name}": value for name, value in of_branch.items()}
    parts = [part for parts in own.values() for part in parts]
    if shared:
        parts.append(joint_dpo_loss(shared))
        metrics["objective/joint"] = parts[-1].detach()
    loss_B = torch.stack(parts).sum(dim=0)
    for modality in logps:
        if own[modality]:
            metrics[f"loss/{modality}"] = torch.stack(own[modality]).sum(dim=0).detach()
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


def best_of_loss(
    logps: Mapping[Modality, BranchLogps], win_scores: Tensors, objective: BestOf
) -> tuple[Tensor, dict[str, Tensor]]:
    """Fine-tuning on the best own samples (RAFT, arXiv 2304.06767, algorithm 1): loss [B].

    L = sum over modalities of -w [score of the winner >= min_score] log p(winner) / tokens. What is
    below the threshold counts as 0, so that a batch of few good winners takes a smaller step.
    """
    terms: list[Tensor] = []
    metrics: dict[str, Tensor] = {}
    for modality, branch in logps.items():
        settings = objective.caption if modality == "caption" else objective.image
        nll_B = nll_anchor(branch.chosen_logps_B, branch.chosen_tokens_B)
        kept_B = (win_scores[modality] >= settings.min_score).to(nll_B.dtype)
        terms.append(settings.weight * kept_B * nll_B)
        metrics |= {
            f"loss/{modality}": terms[-1].detach(),
            f"{modality}/nll": nll_B.detach(),
            f"{modality}/kept": kept_B,
        }
    loss_B = torch.stack(terms).sum(dim=0)
    return loss_B, {"loss": loss_B.detach(), **metrics}


def group_policy_loss(
    logps: Mapping[Modality, BranchLogps], signals: Signals, objective: GroupPolicy
) -> tuple[Tensor, dict[str, Tensor]]:
    """GRPO (arXiv 2402.03300, eq. 3 and 4) on both modalities of a record: loss [B] of two samples.

    With c = (log policy - log reference) / tokens, r = exp(c) and the advantage A of a sample in
    its group, L = w * share * [-min(r A, clip(r) A) + kl_weight * (exp(-c) + c - 1)]. The ratio is
    one of whole samples (GSPO, arXiv 2507.18071), since families give sums over tokens. The
    reference is the checkpoint that has sampled, so the ratio is that to the old policy, too.
    Where the likelihood of an image is an estimate, policy, reference and all samples of a record
    share the masks (UniGRPO of MMaDA, arXiv 2505.15809).
    """
    terms: list[Tensor] = []
    metrics: dict[str, Tensor] = {}
    for modality, branch in logps.items():
        settings = objective.caption if modality == "caption" else objective.image
        logps_B2 = torch.stack((branch.chosen_logps_B, branch.rejected_logps_B), dim=1)
        tokens_B2 = torch.stack((branch.chosen_tokens_B, branch.rejected_tokens_B), dim=1)
        advantages_B2, shares_B2 = signals.advantages[modality], signals.shares[modality]
        change_B2 = length_normalised(logratios(logps_B2, signals.reference[modality]), tokens_B2)
        gain_B2, clipped_B2 = clipped_gain(change_B2, advantages_B2, settings.clip)
        kl_B2 = k3(change_B2)
        loss_B2 = shares_B2 * (settings.kl_weight * kl_B2 - gain_B2)
        terms.append(settings.weight * loss_B2.sum(dim=1))
        found = {"gain": gain_B2, "kl": kl_B2, "clipped": clipped_B2, "ratio": change_B2.exp()}
        metrics |= {
            f"{modality}/{name}": (shares_B2 * value_B2).sum(dim=1).detach()
            for name, value_B2 in found.items()
        }
        metrics[f"loss/{modality}"] = terms[-1].detach()
    loss_B = torch.stack(terms).sum(dim=0)
    return loss_B, {"loss": loss_B.detach(), **metrics}
