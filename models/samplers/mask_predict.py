"""Images by mask prediction (MaskGIT, arXiv 2202.04200): all codes at once, in a few steps.

Shapes: R rows, N image tokens, C codebook entries.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from models.protocol import MaskPredict
from models.samplers.noise import Noise

UNKNOWN = -1


class Blocks(Protocol):
    """The image blocks of a network, behind their prompts."""

    def first_logits(self) -> Tensor:
        """Guided logits [R,N,C] where no code is known yet."""
        ...

    def logits(self, codes_RN: Tensor, unknown_RN: Tensor, /) -> Tensor:
        """Guided logits [R,N,C] in float32; codes at unknown places are not looked at."""
        ...


def mask_predict(
    blocks: Blocks, given_RN: Tensor, sampling: MaskPredict, noise: Noise, *, alike: bool
) -> Tensor:
    """Codes [R,N]; those of `given_RN` other than UNKNOWN are kept.

    With `alike`, no code is given, so that the samples of a prompt begin with the same logits.
    """
    unknown_RN = given_RN == UNKNOWN
    codes_RN = given_RN
    temperature = sampling.temperature
    for step in range(sampling.steps):
        first = alike and step == 0
        logits_RNC = blocks.first_logits() if first else blocks.logits(codes_RN, unknown_RN)
        probs_RNC = logits_RNC.softmax(dim=-1)
        codes_RN = torch.where(unknown_RN, noise.categorical(probs_RNC), codes_RN)
        ratio = (step + 1) / sampling.steps
        # Compounds over the steps; the published schedule, which released weights are used with.
        temperature *= 1 - ratio
        chosen_RN = probs_RNC.gather(-1, codes_RN[:, :, None])[:, :, 0]
        chosen_RN = torch.where(unknown_RN, chosen_RN, torch.finfo(chosen_RN.dtype).max)
        num_masked_R = mask_lengths(ratio, unknown_RN)
        unknown_RN = remask(chosen_RN, noise.uniform(chosen_RN), temperature, num_masked_R)
    return codes_RN


def mask_lengths(ratio: float, unknown_RN: Tensor) -> Tensor:
    """Number of tokens [R] to leave masked after the share `ratio` of the steps.

    floor(N * cos(pi/2 * ratio)) with the full N, at most the unknown ones less one, at least 1. In
    float32 like the published schedule: the floor of a product just below an integer decides.
    """
    # On the CPU, so that no step of sampling waits for a GPU.
    fraction = torch.cos(torch.tensor(ratio) * math.pi * 0.5)
    length = int(torch.floor(unknown_RN.shape[1] * fraction))
    return (unknown_RN.sum(dim=1) - 1).clamp(max=length).clamp(min=1)


def remask(probs_RN: Tensor, uniform_RN: Tensor, temperature: float, length_R: Tensor) -> Tensor:
    """The positions [R,N] to mask again: the least confident ones.

    Confidence is log-probability plus `temperature` times Gumbel noise; positions strictly below
    the one of rank `length_R` (from 0) are masked.
    """
    gumbel_RN = -_safe_log(-_safe_log(uniform_RN))
    confidence_RN = _safe_log(probs_RN) + temperature * gumbel_RN
    cut_R1 = confidence_RN.sort(dim=1).values.gather(1, length_R[:, None])
    return confidence_RN < cut_R1


def _safe_log(x: Tensor) -> Tensor:
    return torch.log(x.clamp(min=1e-20))
