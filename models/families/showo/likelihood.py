"""Likelihoods of a Show-o network: packed trees of tokens, through one `forward`.

Everything that is trained or scored by likelihood passes here: pre-training, choices of a
question, both branches of preference pairs. A pair is a tree in each modality: image ->
instruction -> chosen / rejected caption, and prompt -> chosen / rejected image, the latter once for
each draw of a mask. The modalities are packed apart.

Shapes: B images, pairs and as many trees, N image tokens, K masks per pair, L labelled tokens, G
branches (labelled segments).
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from models.families.showo.config import ShowoConfig
from models.families.showo.masks import mask_pair
from models.families.showo.network import Showo
from models.families.showo.prompts import (
    CAPTION_QUESTION,
    Ids,
    ShowoTokenizer,
    SpecialIds,
    image_block,
    mmu_answer,
    mmu_instruction,
    mmu_prefix,
    t2i_prompt,
    vqa_question,
)
from models.nn.packing import (
    IGNORE,
    PackedBatch,
    Segment,
    Tree,
    pack_trees,
)
from models.nn.pairs import PackedPairs, branch_logps
from models.protocol import BranchLogps, Modality, PairBatch, RedrawBatch


class TokenLogps(nn.Module):
    """Log-probabilities of the labelled tokens of a packed batch.

    The one module that training wraps (autocast and data parallelism act on `forward`).
    """

    def __init__(self, network: Showo) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: PackedBatch) -> Tensor:
        """[L] in nats, over the full vocabulary, in float32."""
        hidden_BRD = self.network(
            batch.input_ids_BT, batch.attend_B1TT, batch.position_ids_BT, read_BR=batch.read_BR
        )
        chosen_LD = hidden_BRD.flatten(0, 1).index_select(0, batch.source_L)
        return self.network.token_logps(chosen_LD, batch.targets_L)


def image_root(image_ids_N: Ids, special: SpecialIds) -> Segment:
    """Root of an understanding tree: mmu, soi, image, eoi, seeing each other."""
    return Segment(mmu_prefix(image_ids_N, special), full=True)


def prompt_root(prompt_ids: Ids, max_text_len: int) -> Segment:
    """Root of a generation tree; its positions leave room for the padding that is not there."""
    return Segment(prompt_ids, position=max_text_len + 1 - len(prompt_ids))


def masked_image(
    input_ids_N: Ids, labels_N: Ids, special: SpecialIds, *, borders: bool, parent: int = 0
) -> Segment:
    """Image block under a prompt; with `borders` soi and eoi are labelled too, as published.

    The two border labels are visible inputs, so they teach nothing but count in published sums.
    """
    ends = (special.soi, special.eoi) if borders else (IGNORE, IGNORE)
    labels = np.concatenate(([ends[0]], labels_N, [ends[1]]))
    return Segment(image_block(input_ids_N, special), parent, full=True, labels=labels)


def instruction(
    tokenizer: ShowoTokenizer, config: ShowoConfig, question: str, choices: Sequence[str]
) -> Ids:
    """The user's turn that asks a question; whether it names the choices is up to the config."""
    wording = vqa_question(question, choices if config.list_choices else ())
    return mmu_instruction(tokenizer, wording)


class PairModule(nn.Module):
    """Log-probabilities of packed pairs; what training wraps and calls."""

    def __init__(self, network: Showo) -> None:
        super().__init__()
        self.token_logps = TokenLogps(network)

    def forward(self, pairs: PackedPairs) -> BranchLogps:
        """Sums by branch, averaged over the masks of a pair."""
        return branch_logps(self.token_logps(pairs.batch), pairs)


def pack_pairs(
    pairs: PairBatch, modality: Modality, tokenizer: ShowoTokenizer, config: ShowoConfig
) -> PackedPairs:
    """The trees of one modality of every pair, packed into rows of about equal length."""
    tree_of = _caption_tree if modality == "caption" else _image_tree
    trees = [tree_of(pairs, index, tokenizer, config) for index in range(len(pairs.prompts))]
    return PackedPairs(pack_trees(trees, tokenizer.special.pad), len(trees), modality)


def pack_redraws(batch: RedrawBatch, tokenizer: ShowoTokenizer, config: ShowoConfig) -> PackedPairs:
    """The trees of pictures that are redrawn, packed into rows of about equal length."""
    trees = [_redraw_tree(batch, i, tokenizer, config) for i in range(len(batch.drawn))]
    return PackedPairs(pack_trees(trees, tokenizer.special.pad), len(trees), "image", num_sides=1)


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
    text = "" if pairs.unprompted[index] else pairs.prompts[index]
    prompt = t2i_prompt(tokenizer.encode(text), special, config.max_text_len)
    both = pairs.drawn_win[index], pairs.drawn_lose[index]
    win_KN, lose_KN, win_labels_KN, lose_labels_KN = _masked_images(
        *both, pairs.draw_seeds[index], pairs.num_draws, config
    )
    tree = [prompt_root(prompt, config.max_text_len)]
    for mask in range(pairs.num_draws):
        # Border labels are left out: they are visible inputs, and add only noise to a preference.
        for ids_KN, labels_KN in ((win_KN, win_labels_KN), (lose_KN, lose_labels_KN)):
            tree.append(masked_image(ids_KN[mask], labels_KN[mask], special, borders=False))
    return tree


def _redraw_tree(
    batch: RedrawBatch, index: int, tokenizer: ShowoTokenizer, config: ShowoConfig
) -> Tree:
    """The picture as it is read, an empty prompt, and its codes once for each draw of a mask."""
    special, codes_N = tokenizer.special, batch.drawn[index]
    prompt = t2i_prompt(tokenizer.encode(""), special, config.max_text_len)
    tree = [image_root(batch.seen.rows[index] + config.image_offset, special), Segment(prompt, 0)]
    ids_KN, _, labels_KN, _ = _masked_images(
        codes_N, codes_N, batch.draw_seeds[index], batch.num_draws, config
    )
    for ids_N, labels_N in zip(ids_KN, labels_KN, strict=True):
        tree.append(masked_image(ids_N, labels_N, special, borders=False, parent=1))
    return tree


def _masked_images(
    win_N: Ids, lose_N: Ids, seed: int, num_draws: int, config: ShowoConfig
) -> tuple[Ids, Ids, Ids, Ids]:
    """Inputs and labels [K,N] of winner and loser; mask k does not depend on how many follow."""
    shape = (num_draws, config.num_vq_tokens + 1)
    draws = np.random.default_rng(seed).random(shape, dtype=np.float32)
    win_KN, lose_KN = (
        np.tile(codes_N + config.image_offset, (num_draws, 1)) for codes_N in (win_N, lose_N)
    )
    masked = mask_pair(win_KN, lose_KN, draws[:, 0], draws[:, 1:], config.mask_token_id)
    return masked.win_BN, masked.lose_BN, masked.win_labels_BN, masked.lose_labels_BN
