"""Branches of packed trees as families score them: pairs of a modality, choices of questions.

Shapes: L labelled tokens, D codes of a position, G branches (labelled segments), B pairs, S sides
of a pair.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.nn.packing import (
    PackedBatch,
    Tree,
    count_tokens,
    num_tokens,
    pack_trees,
    sum_logps,
)
from models.protocol import BranchLogps, Modality, Questions

RUN_TOKENS = 2**13
"""Tokens of questions that pass the network at once."""


@dataclass(frozen=True)
class PackedPairs:
    """One modality of pairs in model form; branches are chosen, rejected, once for each draw."""

    batch: PackedBatch
    num_pairs: int
    modality: Modality
    num_sides: int = 2
    """Branches of a draw: chosen and rejected, or one that is both."""

    def to(self, device: torch.device | str) -> "PackedPairs":
        """The same pairs on another device."""
        return replace(self, batch=self.batch.to(device))


def branch_logps(logps: Tensor, pairs: PackedPairs) -> BranchLogps:
    """Sums by branch of [L], or of [L,D] for D codes of each position, averaged over draws."""
    batch, logps_LD = pairs.batch, logps.view(len(logps), -1)
    sums_G = sum_logps(logps_LD.sum(dim=1), batch.branch_L, batch.num_branches)
    tokens_G = count_tokens(batch.branch_L, batch.num_branches).to(sums_G.dtype)
    shape = (pairs.num_pairs, -1, pairs.num_sides)
    logps_BS = sums_G.view(shape).mean(dim=1)
    tokens_BS = logps_LD.shape[1] * tokens_G.view(shape).mean(dim=1)
    return BranchLogps(logps_BS[:, 0], logps_BS[:, -1], tokens_BS[:, 0], tokens_BS[:, -1])


@torch.inference_mode()
def choice_logps(
    token_logps: Callable[[PackedBatch], Tensor],
    trees: Sequence[Tree],
    questions: Questions,
    pad_id: int,
    device: torch.device,
) -> list[list[Tensor]]:
    """Log-probability, on the CPU, of each choice of each question of each image.

    A tree holds all questions about an image; its branches are their choices, in order. The end
    token counts, so a choice is not favoured for being the beginning of another.
    """
    num_choices = [[len(choices) for _, choices in asked] for asked in questions]
    branches = [sum(counts) for counts in num_choices]
    found: dict[int, Tensor] = {}
    for run in _runs(trees):
        batch = pack_trees([trees[i] for i in run], pad_id).to(device)
        sums_G = sum_logps(token_logps(batch), batch.branch_L, batch.num_branches).cpu()
        found |= zip(run, sums_G.split([branches[i] for i in run]), strict=True)
    return [list(found[i].split(counts)) for i, counts in enumerate(num_choices)]


def _runs(trees: Sequence[Tree]) -> list[list[int]]:
    """Indices of trees by length, at most `RUN_TOKENS` together.

    Trees of like lengths leave little padding when they are packed together.
    """
    length_B = [num_tokens(tree) for tree in trees]
    runs: list[list[int]] = []
    room = 0
    for index in sorted(range(len(trees)), key=length_B.__getitem__):
        if not runs or length_B[index] > room:
            runs.append([])
            room = RUN_TOKENS
        runs[-1].append(index)
        room -= length_B[index]
    return runs
