"""Images code by code, each drawn given those before it.

Shapes: R rows, N codes of an image, C codebook entries.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.protocol import Autoregressive
from models.samplers.noise import Noise
from models.samplers.text import nucleus

NextLogits = Callable[[Tensor | None], Tensor]
"""Logits [R,C] of the next code given the one drawn last (None at the start).

With guidance these are the conditional rows, followed by as many unconditional ones.
"""


def draw_codes(
    next_logits: NextLogits, num_codes: int, how: Autoregressive, noise: Noise
) -> Tensor:
    """Codes [R,N]."""
    codes: list[Tensor] = []
    last_R: Tensor | None = None
    for _ in range(num_codes):
        logits_RC = guided(next_logits(last_R).float(), how.guidance)
        probs_RC = code_probabilities(logits_RC, how)
        last_R = noise.categorical(probs_RC[:, None])[:, 0]
        codes.append(last_R)
    return torch.stack(codes, dim=1)


def guided(logits_RC: Tensor, guidance: float) -> Tensor:
    """(1+g)*conditional - g*unconditional logits; without guidance all rows are conditional."""
    if guidance == 0:
        return logits_RC
    cond_RC, uncond_RC = logits_RC.chunk(2)
    return (1 + guidance) * cond_RC - guidance * uncond_RC


def code_probabilities(logits_RC: Tensor, how: Autoregressive) -> Tensor:
    """Temperature, then top-k with ties kept, then the smallest set of codes that has top-p."""
    scaled_RC = logits_RC / how.temperature
    if how.top_k is not None and how.top_k < scaled_RC.shape[1]:
        worst_R1 = scaled_RC.topk(how.top_k, dim=1).values[:, -1:]
        scaled_RC = scaled_RC.masked_fill(scaled_RC < worst_R1, -math.inf)
    probs_RC = scaled_RC.softmax(dim=1)
    if how.top_p is not None and how.top_p < 1:
        probs_RC = nucleus(probs_RC, torch.full_like(probs_RC[:, :1], how.top_p))
    return probs_RC
