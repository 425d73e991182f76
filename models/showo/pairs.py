"""Homologous pairs as packed trees, and their log-probabilities.

A pair is two trees: image -> instruction -> chosen / rejected caption, and
prompt -> chosen / rejected image, the latter once for each mask.

Shapes: B pairs, N image tokens, K masks a pair, G branches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from models.base import BranchLogps, PairBatch, PairLogps
from models.packing import PackedBatch, Segment, Tree, count_tokens, pack_trees, sum_logps
from models.showo.logps import TokenLogps, image_root, masked_image, prompt_root
from models.showo.masks import mask_pair
from models.showo.network import Showo, ShowoConfig
from models.showo.prompting import (
    CAPTION_QUESTION,
    Ids,
    ShowoTokenizer,
    mmu_answer,
    mmu_instruction,
    t2i_prompt,
)


@dataclass(frozen=True)
class PackedPairs:
    """Pairs in model form; each has two caption branches, then two image branches for each mask."""

    batch: PackedBatch
    num_pairs: int

    def to(self, device: torch.device | str) -> "PackedPairs":
        """The same pairs on another device."""
        return replace(self, batch=self.batch.to(device))


class PairModule(nn.Module):
    """Log-probabilities of packed pairs; what training wraps and calls."""

    def __init__(self, network: Showo) -> None:
        super().__init__()
        self.token_logps = TokenLogps(network)

    def forward(self, pairs: PackedPairs) -> PairLogps:
        """Sums by branch, averaged over the masks of a pair."""
        batch = pairs.batch
        logps_L = self.token_logps(batch)
        logps_BG = sum_logps(logps_L, batch.branch_L, batch.num_branches)
        tokens_BG = count_tokens(batch.branch_L, batch.num_branches).to(logps_BG.dtype)
        return _by_modality(logps_BG.view(pairs.num_pairs, -1), tokens_BG.view(pairs.num_pairs, -1))


def _by_modality(logps_BG: Tensor, tokens_BG: Tensor) -> PairLogps:
    return PairLogps(
        caption=BranchLogps(logps_BG[:, 0], logps_BG[:, 1], tokens_BG[:, 0], tokens_BG[:, 1]),
        image=BranchLogps(
            logps_BG[:, 2::2].mean(dim=1),
            logps_BG[:, 3::2].mean(dim=1),
            tokens_BG[:, 2::2].mean(dim=1),
            tokens_BG[:, 3::2].mean(dim=1),
        ),
    )


def pack_pairs(pairs: PairBatch, tokenizer: ShowoTokenizer, config: ShowoConfig) -> PackedPairs:
    """Both trees of every pair, packed into rows of about equal length."""
    trees: list[Tree] = []
    for index in range(len(pairs.prompts)):
        trees.append(_caption_tree(pairs, index, tokenizer, config))
        trees.append(_image_tree(pairs, index, tokenizer, config))
    return PackedPairs(pack_trees(trees, tokenizer.special.pad), len(pairs.prompts))


def _caption_tree(
    pairs: PairBatch, index: int, tokenizer: ShowoTokenizer, config: ShowoConfig
) -> Tree:
    root = image_root(pairs.codes_BN[index] + config.image_offset, tokenizer.special)
    captions: Sequence[str] = (pairs.captions_win[index], pairs.captions_lose[index])
    answers = (mmu_answer(tokenizer, caption, config.max_text_len) for caption in captions)
    instruction = Segment(mmu_instruction(tokenizer, CAPTION_QUESTION), parent=0)
    return [root, instruction, *(Segment(ids, parent=1, labels=ids) for ids in answers)]


def _image_tree(
    pairs: PairBatch, index: int, tokenizer: ShowoTokenizer, config: ShowoConfig
) -> Tree:
    special = tokenizer.special
    prompt = t2i_prompt(tokenizer.encode(pairs.prompts[index]), special, config.max_text_len)
    win_KN, lose_KN, win_labels_KN, lose_labels_KN = _masked_images(pairs, index, config)
    tree = [prompt_root(prompt, config.max_text_len)]
    for mask in range(pairs.num_masks):
        # Border labels are left out: they are visible inputs, and add only noise to a preference.
        for ids_KN, labels_KN in ((win_KN, win_labels_KN), (lose_KN, lose_labels_KN)):
            tree.append(masked_image(ids_KN[mask], labels_KN[mask], special, borders=False))
    return tree


def _masked_images(pairs: PairBatch, index: int, config: ShowoConfig) -> tuple[Ids, Ids, Ids, Ids]:
    """Inputs and labels [K,N] of winner and loser; mask k does not depend on how many follow."""
    shape = (pairs.num_masks, config.num_vq_tokens + 1)
    draws = np.random.default_rng(pairs.mask_seeds[index]).random(shape, dtype=np.float32)
    win_KN, lose_KN = (
        np.tile(codes_BN[index] + config.image_offset, (pairs.num_masks, 1))
        for codes_BN in (pairs.codes_win_BN, pairs.codes_lose_BN)
    )
    masked = mask_pair(win_KN, lose_KN, draws[:, 0], draws[:, 1:], config.mask_token_id)
    return masked.win_BN, masked.lose_BN, masked.win_labels_BN, masked.lose_labels_BN
