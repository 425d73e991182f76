"""The head of a network, of which no more logits exist at once than a part of its vocabulary has.

Shapes: R chosen positions, D width, V vocabulary.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from models.linear import Linear, current_autocast, gradients, linear

# Logits that exist at once while log-probabilities are summed, and columns of the vocabulary: at
# least, at most. Powers of two, since oneDNN keeps what it compiles for a number of columns.
HEAD_LOGITS, HEAD_COLUMNS = 2**24, (2**6, 2**12)


class Head(Linear):
    """The widest layer by far.

    The backward pass of one that `adds` adds to the gradients that are there by itself, so that no
    second one exists. It is for those who call `backward`, and no other function.
    """

    adds = False

    def token_logps(self, hidden_RD: Tensor, targets_R: Tensor) -> Tensor:
        """Log-probabilities [R] in nats over the full vocabulary, in float32.

        Logits of a part of the vocabulary exist at once; the backward pass computes them again.
        """
        return _TokenLogps.apply(  # type: ignore[no-any-return, no-untyped-call]
            hidden_RD, self.weight, self.bias, targets_R, self.adds
        )


class _TokenLogps(Function):
    """Logits minus the logarithm of their sum, which is added up over parts of the vocabulary."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor,
        targets_R: Tensor,
        adds: bool,
    ) -> Tensor:
        ctx.autocast = current_autocast(hidden_RD.device.type)
        chosen_R = torch.zeros_like(targets_R, dtype=torch.float32)
        # Rounding a sum of some nats to float32 would be seen in sums over tokens.
        sums_R = torch.full_like(chosen_R, -math.inf, dtype=torch.float64)
        for columns in _head_columns(len(targets_R), len(weight_VD)):
            logits_RV = linear(hidden_RD, weight_VD[columns], bias_V[columns]).float()
            inside_R, target_R = _targets_in(columns, targets_R)
            found_R = logits_RV.gather(1, target_R[:, None])[:, 0]
            chosen_R = torch.where(inside_R, found_R, chosen_R)
            peak_R1 = logits_RV.amax(dim=1, keepdim=True)
            rest_R = logits_RV.sub_(peak_R1).exp_().sum(dim=1).double().log()
            sums_R = torch.logaddexp(sums_R, peak_R1[:, 0].double() + rest_R)
        ctx.save_for_backward(hidden_RD, weight_VD, bias_V, targets_R, sums_R)
        ctx.adds = adds
        return (chosen_R - sums_R).float()

    @staticmethod
    def backward(ctx: Any, grad_R: Tensor) -> tuple[Tensor | None, ...]:
        hidden_RD, weight_VD, bias_V, targets_R, sums_R = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        grad_RD = torch.zeros_like(hidden_RD, dtype=torch.float32)
        adds = ctx.adds and weight_VD.grad is not None and bias_V.grad is not None
        # Each part of the vocabulary fills, or adds to, a slice of each.
        of_head = [
            (part.grad if adds else torch.empty_like(part)) if wants else None
            for part, wants in zip((weight_VD, bias_V), wanted[1:], strict=True)
        ]
        with ctx.autocast:
            for columns in _head_columns(len(targets_R), len(weight_VD)):
                part_VD = weight_VD[columns]
                logits_RV = linear(hidden_RD, part_VD, bias_V[columns]).float()
                # The derivative by a logit: 1 for that of the target, less its probability.
                share_RV = logits_RV.sub_(sums_R.float()[:, None]).exp_().mul_(-grad_R[:, None])
                inside_R, target_R = _targets_in(columns, targets_R)
                share_RV.scatter_add_(1, target_R[:, None], (grad_R * inside_R)[:, None])
                rows_RD, *found = gradients(share_RV, hidden_RD, part_VD, wanted)
                if rows_RD is not None:
                    grad_RD += rows_RD
                for whole, part in zip(of_head, found, strict=True):
                    if whole is not None and part is not None:
                        fill = whole[columns].add_ if adds else whole[columns].copy_
                        fill(part)
        new = (None, None) if adds else of_head
        return grad_RD.to(hidden_RD.dtype) if wanted[0] else None, *new, None, None


def _head_columns(rows: int, vocabulary: int) -> list[slice]:
    """Parts of the vocabulary, the smaller the more rows there are."""
    least, most = HEAD_COLUMNS
    fitting = 1 << (HEAD_LOGITS // max(1, rows)).bit_length() >> 1
    width = min(most, max(least, fitting))
    starts = range(0, vocabulary, width)
    return [slice(start, min(start + width, vocabulary)) for start in starts]


def _targets_in(columns: slice, targets_R: Tensor) -> tuple[Tensor, Tensor]:
    """Which targets are among the columns, and where; others are somewhere among them."""
    inside_R = (targets_R >= columns.start) & (targets_R < columns.stop)
    return inside_R, (targets_R - columns.start).where(inside_R, torch.zeros_like(targets_R))
