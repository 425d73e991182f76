"""Likelihoods of a VILA-U network: packed trees, through one `forward`.

A picture that is read is a tree: head -> positions -> question -> answers. A picture that is drawn
is a leaf behind its prompt, all codes of a position predicted from the state before it. Positions
of pictures carry their codes as features in both. Both are exact.

Shapes: N positions of a picture, D codes of each, L labelled tokens.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from models.families.vila_u.network import VilaU
from models.families.vila_u.prompts import CAPTION_QUESTION, Ids, VilaUTokenizer
from models.nn.packing import PackedBatch, Segment, Tree, pack_trees
from models.nn.pairs import PackedPairs, branch_logps
from models.protocol import BranchLogps, Modality, PairBatch
from models.samplers.reading import leaf

PICTURE = 1
"""Where the positions stand in the tree of a picture that is read."""


class TokenLogps(nn.Module):
    """Log-probabilities of the labelled tokens of a packed batch, texts or codes."""

    def __init__(self, network: VilaU) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: PackedBatch, *, codes: bool = False) -> Tensor:
        """[L] of texts, or [L,D] of codes, in nats, in float32."""
        network = self.network
        hidden_BRW = network.transform(
            network.embed(batch), batch.attend_B1TT, batch.position_ids_BT, read_BR=batch.read_BR
        )
        chosen_LW = hidden_BRW.flatten(0, 1).index_select(0, batch.source_L)
        score = network.code_logps if codes else network.token_logps
        return score(chosen_LW, batch.targets_L)


class PairModule(nn.Module):
    """Log-probabilities of packed pairs; what training wraps and calls."""

    def __init__(self, network: VilaU) -> None:
        super().__init__()
        self.token_logps = TokenLogps(network)

    def forward(self, pairs: PackedPairs) -> BranchLogps:
        """Sums by branch; of pictures over all codes, each of which counts as a token."""
        if pairs.modality == "caption":
            return branch_logps(self.token_logps(pairs.batch), pairs)
        logps_LD = self.token_logps(pairs.batch, codes=True)
        found = branch_logps(logps_LD.sum(dim=1), pairs)
        depth = logps_LD.shape[1]
        return found._replace(
            chosen_tokens_B=depth * found.chosen_tokens_B,
            rejected_tokens_B=depth * found.rejected_tokens_B,
        )


def read_picture(codes_ND: Ids, tokenizer: VilaUTokenizer) -> list[Segment]:
    """Tree of a picture that is read: what every picture begins with, and its positions."""
    places = np.full(len(codes_ND), tokenizer.special.pad, dtype=np.int64)
    return [Segment(tokenizer.picture_head()), Segment(places, parent=0, features=codes_ND)]


def drawn_picture(codes_ND: Ids, pad_id: int, parent: int = 0) -> Segment:
    """A picture behind its prompt, all of whose codes are predicted."""
    places = np.full(len(codes_ND) - 1, pad_id, dtype=np.int64)
    return Segment(places, parent, labels=codes_ND, features=codes_ND[:-1])


def pack_pairs(pairs: PairBatch, modality: Modality, tokenizer: VilaUTokenizer) -> PackedPairs:
    """The trees of one modality of every pair, packed into rows of about equal length."""
    tree = _caption_tree if modality == "caption" else _image_tree
    trees = [tree(pairs, index, tokenizer) for index in range(len(pairs.prompts))]
    return PackedPairs(pack_trees(trees, tokenizer.special.pad), len(trees), modality)


def _caption_tree(pairs: PairBatch, index: int, tokenizer: VilaUTokenizer) -> Tree:
    tree = read_picture(pairs.seen.rows[index], tokenizer)
    tree.append(Segment(tokenizer.question(CAPTION_QUESTION), parent=PICTURE))
    captions: Sequence[str] = (pairs.captions_win[index], pairs.captions_lose[index])
    return [*tree, *(leaf(tokenizer.answer(text), len(tree) - 1) for text in captions)]


def _image_tree(pairs: PairBatch, index: int, tokenizer: VilaUTokenizer) -> Tree:
    bare = pairs.unprompted[index]
    prompt = tokenizer.unprompted() if bare else tokenizer.prompt(pairs.prompts[index])
    branches = (pairs.drawn_win[index], pairs.drawn_lose[index])
    return [Segment(prompt), *(drawn_picture(codes, tokenizer.special.pad) for codes in branches)]
