"""Homologous pairs as packed trees, and their log-probabilities.

A pair is a tree in each modality: image -> instruction -> chosen / rejected caption, and
prompt -> chosen / rejected image, the latter once for each mask. The modalities are packed apart,
so that each has a gradient of its own.

Shapes: B pairs, N image tokens, K masks a pair, G branches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from models.families.showo.config import ShowoConfig
from models.families.showo.masks import mask_pair
from models.families.showo.network import Showo
from models.families.showo.prompts import (
    CAPTION_QUESTION,
    Ids,
    ShowoTokenizer,
    mmu_answer,
    mmu_instruction,
    t2i_prompt,
)
from models.families.showo.trees import TokenLogps, image_root, masked_image, prompt_root
from models.nn.packing import PackedBatch, Segment, Tree, count_tokens, pack_trees, sum_logps
from models.protocol import BranchLogps, Modality, PairBatch


@dataclass(frozen=True)
class PackedPairs:
    """One modality of pairs in model form; branches are chosen, rejected, once for each mask."""

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

    def forward(self, pairs: PackedPairs) -> BranchLogps:
        """Sums by branch, averaged over the masks of a pair."""
        batch = pairs.batch
        sums_G = sum_logps(self.token_logps(batch), batch.branch_L, batch.num_branches)
        tokens_G = count_tokens(batch.branch_L, batch.num_branches).to(sums_G.dtype)
        logps_B2 = sums_G.view(pairs.num_pairs, -1, 2).mean(dim=1)
        tokens_B2 = tokens_G.view(pairs.num_pairs, -1, 2).mean(dim=1)
        return BranchLogps(logps_B2[:, 0], logps_B2[:, 1], tokens_B2[:, 0], tokens_B2[:, 1])


def pack_pairs(
    pairs: PairBatch, modality: Modality, tokenizer: ShowoTokenizer, config: ShowoConfig
) -> PackedPairs:
    """The trees of one modality of every pair, packed into rows of about equal length."""
    tree_of = _caption_tree if modality == "caption" else _image_tree
    trees = [tree_of(pairs, index, tokenizer, config) for index in range(len(pairs.prompts))]
    return PackedPairs(pack_trees(trees, tokenizer.special.pad), len(pairs.prompts))


def _caption_tree(
    pairs: PairBatch, index: int, tokenizer: ShowoTokenizer, config: ShowoConfig
) -> Tree:
    root = image_root(pairs.seen.rows[index] + config.image_offset, tokenizer.special)
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
    for mask in range(pairs.num_draws):
        # Border labels are left out: they are visible inputs, and add only noise to a preference.
        for ids_KN, labels_KN in ((win_KN, win_labels_KN), (lose_KN, lose_labels_KN)):
            tree.append(masked_image(ids_KN[mask], labels_KN[mask], special, borders=False))
    return tree


def _masked_images(pairs: PairBatch, index: int, config: ShowoConfig) -> tuple[Ids, Ids, Ids, Ids]:
    """Inputs and labels [K,N] of winner and loser; mask k does not depend on how many follow."""
    shape = (pairs.num_draws, config.num_vq_tokens + 1)
    draws = np.random.default_rng(pairs.draw_seeds[index]).random(shape, dtype=np.float32)
    win_KN, lose_KN = (
        np.tile(codes_BN[index] + config.image_offset, (pairs.num_draws, 1))
        for codes_BN in (pairs.drawn_win, pairs.drawn_lose)
    )
    masked = mask_pair(win_KN, lose_KN, draws[:, 0], draws[:, 1:], config.mask_token_id)
    return masked.win_BN, masked.lose_BN, masked.win_labels_BN, masked.lose_labels_BN
