"""Preference losses and their metrics as pure functions of per-record log-probabilities.

Shapes: B records. Log-probabilities are sums over tokens, in nats.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def length_normalised(logps_B: Tensor, tokens_B: Tensor) -> Tensor:
    """Log-probability per token; takes away the weight that length alone has in a sum."""
    return logps_B / tokens_B


def logratios(logps_B: Tensor, ref_logps_B: Tensor) -> Tensor:
    """log(policy / reference) of each record."""
    return logps_B - ref_logps_B


def margins(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    ref_chosen_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
) -> Tensor:
    """How much more than the reference the policy prefers the chosen record; without beta."""
    chosen_logratios_B = logratios(chosen_logps_B, ref_chosen_logps_B)
    return chosen_logratios_B - logratios(rejected_logps_B, ref_rejected_logps_B)


def dpo_loss(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    ref_chosen_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Per-pair DPO loss (Rafailov et al. 2023, eq. 7)."""
    margins_B = margins(chosen_logps_B, rejected_logps_B, ref_chosen_logps_B, ref_rejected_logps_B)
    return -F.logsigmoid(beta * margins_B)


def joint_dpo_loss(reward_margins_B: Sequence[Tensor]) -> Tensor:
    """Per-pair loss with one sigmoid over the summed margins of several modalities.

    Takes margins already multiplied by the beta and weight of their modality. The sum of
    `dpo_loss` terms asks each modality for a margin of its own; here one may make up for another.
    """
    return -F.logsigmoid(torch.stack(tuple(reward_margins_B)).sum(dim=0))


def nll_anchor(chosen_logps_B: Tensor, chosen_tokens_B: Tensor) -> Tensor:
    """Per-token negative log-likelihood of the chosen record (Pang et al. 2024, eq. 1).

    Keeps the winner likely, which the preference term alone does not.
    """
    return -length_normalised(chosen_logps_B, chosen_tokens_B)


def preference_metrics(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    ref_chosen_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
    *,
    beta: float,
) -> dict[str, Tensor]:
    """Metrics [B] of each pair, detached. A tie counts as wrong in the accuracy."""
    chosen_rewards_B = beta * logratios(chosen_logps_B, ref_chosen_logps_B).detach()
    rejected_rewards_B = beta * logratios(rejected_logps_B, ref_rejected_logps_B).detach()
    return {
        "logps/chosen": chosen_logps_B.detach(),
        "logps/rejected": rejected_logps_B.detach(),
        "rewards/chosen": chosen_rewards_B,
        "rewards/rejected": rejected_rewards_B,
        "rewards/margins": chosen_rewards_B - rejected_rewards_B,
        "rewards/accuracies": (chosen_rewards_B > rejected_rewards_B).float(),
    }


def group_advantages(scores_N: Tensor) -> Tensor:
    """(score - mean) / standard deviation within a group (GRPO, arXiv 2402.03300, section 4.1.2).

    Scores that are all alike, but for rounding, have no advantage.
    """
    centred_N = scores_N - scores_N.mean()
    return centred_N / (centred_N.square().mean().sqrt() + 1e-4)


def clipped_gain(change: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """min(r A, clip(r) A) of log-ratios (PPO, arXiv 1707.06347, eq. 7); where the clip is it."""
    ratio = change.exp()
    free, held = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    return torch.minimum(free, held), (held < free).to(free.dtype)


def k3(change: Tensor) -> Tensor:
    """Estimate of KL(policy | reference) from log(policy / reference) of a sample; at least 0."""
    return torch.expm1(-change) + change
