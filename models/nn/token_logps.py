"""Log-probabilities of tokens from the states before a language model's head.

Shapes: R tokens, D width, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = 2**26
"""Logits that exist at once: 256 MB in float32."""


def token_logps(hidden_RD: Tensor, head: nn.Linear, targets_R: Tensor) -> Tensor:
    """Log-probabilities [R] in nats of the targets over the full vocabulary, in float32.

    Where there are many, the logits of some rows exist at a time, and the backward pass computes
    them again. Torch's own `linear_cross_entropy` does the same, but rounds its sums under bfloat16
    and was six times as slow on a CPU (docs/tried.md).
    """
    num_rows = max(1, MAX_LOGITS // head.out_features)
    if len(hidden_RD) <= num_rows:
        return _logps(hidden_RD, head, targets_R)
    chunks = zip(hidden_RD.split(num_rows), targets_R.split(num_rows), strict=True)
    return torch.cat([checkpoint(_logps, h, head, t, use_reentrant=False) for h, t in chunks])


def _logps(hidden_RD: Tensor, head: nn.Linear, targets_R: Tensor) -> Tensor:
    return -F.cross_entropy(head(hidden_RD).float(), targets_R, reduction="none")
