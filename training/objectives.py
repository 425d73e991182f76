"""What a checkpoint learns from its own samples: one loss over both modalities of a record.

Pure functions of log-probabilities. All of them return the loss of each row and metrics under the
same names: `loss` and what a modality has of its own in it, `loss/caption` and `loss/image`; what
only one objective has is `objective/...`, or `<modality>/...` where it is of one modality. A term
beside an objective has `loss/reconstruction`.
Shapes: B pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, overload

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
    from core.config import (
        BestOf,
        Branch,
        GroupDpo,
        GroupDpoBranch,
        GroupPolicy,
        InternalGap,
        Objective,
        PairDpo,
        Reconstruction,
        Training,
    )

Term = Modality | Literal["redraw"]
"""What has likelihoods of its own: a modality of samples, or true pictures by what is read."""
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
    likeness: Tensor | None = None
    """[B]: how alike drawings and picture of the record are, 1 in the mean; None: not asked for."""


def objective_loss(
    logps: Mapping[Modality, BranchLogps], signals: Signals, objective: Objective
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss [B] of each row over the modalities given, and metrics [B], by the objective's name."""
    if objective.name == "best_of":
        return best_of_loss(logps, signals.win_scores, objective)
    if objective.name == "group_policy":
        return group_policy_loss(logps, signals, objective)
    if objective.name == "reconstruction":
        return true_caption_loss(logps["caption"], objective)
    return preference_loss(logps, signals, objective)


def active_modalities(objective: Objective) -> list[Modality]:
    """Modalities with a term in the loss; the others are not computed at all."""
    factors = ["weight"]
    if objective.name in ("pair_dpo", "group_dpo", "internal_gap"):
        factors += ["nll_weight", "kl_weight"]
    branches = {modality: getattr(objective, modality, None) for modality in MODALITIES}
    return [
        modality
        for modality, branch in branches.items()
        if any(getattr(branch, name, 0) > 0 for name in factors)
    ]


def knob(objective: Objective, modality: Modality) -> str:
    """The field, with its value, that makes the term of a modality smaller."""
    branch = getattr(objective, modality)
    name = "beta" if hasattr(branch, "beta") else "weight"
    value = getattr(branch, name)
    return f"training.objective.{modality}.{name} = {value}"


def terms_of(training: Training) -> list[list[Term]]:
    """What meets in one term of the loss, and so needs its likelihoods at once.

    Those of other terms go through the network one after the other, so that the activations of one
    are gone before those of the next are there.
    """
    objective, beside = training.objective, training.reconstruction
    active: list[Term] = list(active_modalities(objective))
    if objective.name == "reconstruction":
        return [["redraw" if modality == "image" else modality] for modality in active]
    joint = objective.name == "pair_dpo" and objective.combine == "joint"
    terms = [active] if joint else [[modality] for modality in active]
    return [*terms, ["redraw"]] if beside is not None and beside.weight > 0 else terms


def preference_loss(
    logps: Mapping[Modality, BranchLogps],
    signals: Signals,
    objective: PairDpo | GroupDpo | InternalGap,
) -> tuple[Tensor, dict[str, Tensor]]:
    """DPO of Pair-DPO (arXiv 2502.12148, eq. 7 to 9) and its kin: loss [B] over the modalities.

    L = sum over modalities of -w log sigmoid(beta * margin), with margin = log(policy / reference)
    of the winner less that of the loser; and metrics [B] without gradients. `sum` adds one sigmoid
    term per modality; `joint` has one sigmoid over the summed margins, so that one modality may
    make up for the other. To either are added the winner's NLL, and kl_weight times the divergence
    from the reference (the estimate k3, mean of winner and loser), which holds on to all samples.

    `group_dpo` has a pair for every two samples of a group, best and worst, second best and second
    worst, and so on; those of every record weigh the same. `internal_gap` (arXiv 2507.16663)
    is that of images alone, where the model's own understanding finds the winner right and the
    loser wrong.
    """
    shared: list[Tensor] = []
    own: dict[Modality, list[Tensor]] = {modality: [] for modality in logps}
    metrics: dict[str, Tensor] = {}
    joint = objective.name == "pair_dpo" and objective.combine == "joint"
    for modality, branch in logps.items():
        settings = _branch_of(objective, modality)
        reference_B2 = signals.reference[modality]
        scores = _scores(branch, reference_B2, settings.length_normalized)
        parts_B: list[Tensor] = []
        if settings.weight > 0 and joint:
            shared.append(settings.weight * settings.beta * margins(*scores))
        elif settings.weight > 0:
            parts_B.append(settings.weight * dpo_loss(*scores, beta=settings.beta))
        nll_B = nll_anchor(branch.chosen_logps_B, branch.chosen_tokens_B)
        if settings.nll_weight > 0:
            parts_B.append(settings.nll_weight * nll_B)
        if settings.kl_weight > 0:
            parts_B.append(settings.kl_weight * divergence(branch, reference_B2))
        of_branch = _metrics(branch, reference_B2, settings.beta, scores)
        if objective.name == "group_dpo":
            least = _branch_of(objective, modality).min_difference
            counts_B = pair_counts(signals.shares[modality], signals.advantages[modality], least)
            parts_B = [counts_B * part_B for part_B in parts_B]
            of_branch = {name: counts_B * value_B for name, value_B in of_branch.items()}
            of_branch["pairs"] = counts_B
        own[modality] += parts_B
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


@overload
def _branch_of(objective: GroupDpo, modality: Modality) -> GroupDpoBranch: ...
@overload
def _branch_of(objective: PairDpo | GroupDpo | InternalGap, modality: Modality) -> Branch: ...
def _branch_of(objective: PairDpo | GroupDpo | InternalGap, modality: Modality) -> Branch:
    """The settings of a modality that is there."""
    branch: Branch = getattr(objective, modality)
    return branch


def pair_counts(shares_B2: Tensor, advantages_B2: Tensor, min_difference: float) -> Tensor:
    """[B]: what the pair of a row counts, so that those of every group count the same.

    0 where there is no loser, or where it is not worse by `min_difference` standard deviations.
    """
    difference_B = advantages_B2[:, 0] - advantages_B2[:, 1]
    there_B = (shares_B2 > 0).all(dim=1) & (difference_B > 0) & (difference_B >= min_difference)
    return there_B * shares_B2.sum(dim=1)


def divergence(branch: BranchLogps, reference_B2: Tensor) -> Tensor:
    """[B] estimate k3 of the divergence from the reference per token, mean of both branches."""
    logps_B2 = torch.stack((branch.chosen_logps_B, branch.rejected_logps_B), dim=1)
    tokens_B2 = torch.stack((branch.chosen_tokens_B, branch.rejected_tokens_B), dim=1)
    return k3(length_normalised(logratios(logps_B2, reference_B2), tokens_B2)).mean(dim=1)


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
        "kl": divergence(branch, reference_B2),
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
    share the masks (UniGRPO of MMaDA, arXiv 2505.15809). With a likeness s of the record, A is
    s A, as in Pair-GRPO (arXiv 2510.25682): pairs of reading and drawing that are more alike
    weigh more.
    """
    terms: list[Tensor] = []
    metrics: dict[str, Tensor] = {}
    for modality, branch in logps.items():
        settings = objective.caption if modality == "caption" else objective.image
        logps_B2 = torch.stack((branch.chosen_logps_B, branch.rejected_logps_B), dim=1)
        tokens_B2 = torch.stack((branch.chosen_tokens_B, branch.rejected_tokens_B), dim=1)
        advantages_B2, shares_B2 = signals.advantages[modality], signals.shares[modality]
        if signals.likeness is not None:
            advantages_B2 = advantages_B2 * signals.likeness[:, None]
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


def true_caption_loss(
    branch: BranchLogps, objective: Reconstruction
) -> tuple[Tensor, dict[str, Tensor]]:
    """-w log p(true caption | picture) / tokens: loss [B] of each record."""
    nll_B = nll_anchor(branch.chosen_logps_B, branch.chosen_tokens_B)
    loss_B = objective.caption.weight * nll_B
    found = {"loss": loss_B, "loss/caption": loss_B, "caption/nll": nll_B}
    return loss_B, {name: value_B.detach() for name, value_B in found.items()}


def redraw_loss(branch: BranchLogps, training: Training) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction alignment (RecA, arXiv 2509.07295): loss [B] of each record.

    L = -w log p(codes of the picture | what understanding reads of it) / tokens: the picture's own
    features stand where a prompt stands otherwise, so that no caption and no sample is needed.
    """
    objective, redrawn, name = training.objective, training.reconstruction, "reconstruction"
    if objective.name == "reconstruction":
        redrawn, name = objective.image, "image"
    assert redrawn is not None  # else there is no such term
    nll_B = nll_anchor(branch.chosen_logps_B, branch.chosen_tokens_B)
    loss_B = redrawn.weight * nll_B
    found = {"loss": loss_B, f"loss/{name}": loss_B, f"{name}/nll": nll_B}
    return loss_B, {key: value_B.detach() for key, value_B in found.items()}


def per_pair(means: Mapping[str, float]) -> dict[str, float]:
    """Means over rows as means over pairs, where `<modality>/pairs` is how many a row counts.

    A row without a pair would else pass for a pair of 0. Without any pair they stay 0; the loss
    stays what it is.
    """
    found = dict(means)
    for modality in MODALITIES:
        pairs = means.get(f"{modality}/pairs", 0.0)
        for name in means if pairs > 0 else ():
            if name.startswith(f"{modality}/") and name != f"{modality}/pairs":
                found[name] /= pairs
    return found
