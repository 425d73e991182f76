"""Likelihoods of a Janus network: packed trees, through one `forward`.

A picture that is read is a tree: head -> features -> question -> answers. A picture that is drawn
is a leaf behind its prompt, one code predicted from the one before; codes stand in rows as ids from
the size of the vocabulary on. Both are exact.

Shapes: F positions of a read picture, N codes, L labelled tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from models.families.janus.network import Janus
from models.families.janus.prompts import CAPTION_QUESTION, Ids, JanusTokenizer
from models.nn.packing import PackedBatch, Segment, Tree, pack_trees
from models.nn.pairs import PackedPairs, branch_logps
from models.protocol import BranchLogps, Modality, PairBatch
from models.samplers.reading import leaf

FEATURES = 1
"""Where the features stand in the tree of a picture that is read."""


class TokenLogps(nn.Module):
    """Log-probabilities of the labelled tokens of a packed batch, texts or codes."""

    def __init__(self, network: Janus) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: PackedBatch, *, codes: bool = False) -> Tensor:
        """[L] in nats, over the vocabulary or the codebook, in float32."""
        network = self.network
        hidden_BRD = network.transform(
            network.embed(batch), batch.attend_B1TT, batch.position_ids_BT, read_BR=batch.read_BR
        )
        chosen_LD = hidden_BRD.flatten(0, 1).index_select(0, batch.source_L)
        return network.token_logps(chosen_LD, batch.targets_L, codes=codes)


class PairModule(nn.Module):
    """Log-probabilities of packed pairs; what training wraps and calls."""

    def __init__(self, network: Janus) -> None:
        super().__init__()
        self.token_logps = TokenLogps(network)

    def forward(self, pairs: PackedPairs) -> BranchLogps:
        """Sums by branch."""
        codes = pairs.modality == "image"
        return branch_logps(self.token_logps(pairs.batch, codes=codes), pairs)


def read_picture(features_FW: npt.NDArray[Any], tokenizer: JanusTokenizer) -> list[Segment]:
    """Tree of a picture that is read: what every picture begins with, and its features."""
    places = np.full(len(features_FW), tokenizer.special.image, dtype=np.int64)
    return [Segment(tokenizer.picture_head()), Segment(places, parent=0, features=features_FW)]


def drawn_picture(codes_N: Ids, vocab_size: int, parent: int = 0) -> Segment:
    """A picture behind its prompt, all of whose codes are predicted."""
    return Segment(codes_N[:-1] + vocab_size, parent, labels=codes_N)


def pack_pairs(
    pairs: PairBatch, modality: Modality, tokenizer: JanusTokenizer, vocab_size: int
) -> PackedPairs:
    """The trees of one modality of every pair, packed into rows of about equal length."""
    rows = range(len(pairs.prompts))
    if modality == "caption":
        trees = [_caption_tree(pairs, index, tokenizer) for index in rows]
    else:
        trees = [_image_tree(pairs, index, tokenizer, vocab_size) for index in rows]
    return PackedPairs(pack_trees(trees, tokenizer.special.pad), len(trees), modality)


def _caption_tree(pairs: PairBatch, index: int, tokenizer: JanusTokenizer) -> Tree:
    tree = read_picture(pairs.seen.rows[index], tokenizer)
    tree.append(Segment(tokenizer.question(CAPTION_QUESTION), parent=FEATURES))
    captions: Sequence[str] = (pairs.captions_win[index], pairs.captions_lose[index])
    return [*tree, *(leaf(tokenizer.answer(text), len(tree) - 1) for text in captions)]


def _image_tree(pairs: PairBatch, index: int, tokenizer: JanusTokenizer, vocab_size: int) -> Tree:
    prompt = tokenizer.prompt(pairs.prompts[index])
    if pairs.unprompted[index]:
        prompt = tokenizer.unprompted(prompt)
    branches = (pairs.drawn_win[index], pairs.drawn_lose[index])
    return [Segment(prompt), *(drawn_picture(codes_N, vocab_size) for codes_N in branches)]
