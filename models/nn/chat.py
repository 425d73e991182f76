"""Networks around one Llama that chat about pictures and draw codes, and their likelihoods.

A picture that is read is a tree: head -> positions -> question -> answers. A picture that is drawn
is a leaf behind its prompt. Both likelihoods are exact, through one `forward`.

Shapes: B rows, T query tokens, S key tokens (cached ones first), R chosen positions, D width,
V text vocabulary, F positions of pictures that are read, L labelled tokens, N positions of a
picture that is drawn.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from models.nn.kv_cache import FixedCache, KVCache
from models.nn.llama import new_llama_cache, run_llama
from models.nn.packing import Ints, PackedBatch, Segment, Tree, pack_trees
from models.nn.pairs import PackedPairs, branch_logps
from models.nn.token_logps import token_logps
from models.protocol import BranchLogps, Modality, PairBatch, RedrawBatch
from models.samplers.reading import Reader, leaf
from models.tokenizers.chat import CAPTION_QUESTION, ChatTokenizer

POSITIONS = 1
"""Where the positions stand in the tree of a picture that is read."""


class ChatNetwork(nn.Module, ABC):
    """All that is trained; how rows with pictures are embedded is the family's."""

    @property
    @abstractmethod
    def llama(self) -> LlamaModel:
        """The language model."""

    @property
    @abstractmethod
    def text_head(self) -> nn.Linear:
        """Its head."""

    @abstractmethod
    def embed(self, batch: PackedBatch) -> Tensor:
        """Input [B,T,D] of packed rows."""

    @abstractmethod
    def code_logps(self, hidden_RD: Tensor, codes: Tensor) -> Tensor:
        """Log-probabilities in nats of the codes at R positions, in float32."""

    def place_constants(self, device: torch.device) -> None:
        """Make what is in no file, for a network that was made on meta."""
        with torch.device(device):
            self.llama.rotary_emb = LlamaRotaryEmbedding(config=self.llama.config)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.text_head.weight.device

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty key-value cache with the device and dtype of the weights."""
        return new_llama_cache(self.llama.config, self.text_head.weight, rows, capacity)

    def forward(
        self,
        input_ids_BT: Tensor,
        attend_B1TS: Tensor | None,
        position_ids_BT: Tensor,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Final hidden states [B,T,D] of text; see `transform`."""
        hidden_BTD: Tensor = self.llama.embed_tokens(input_ids_BT)
        return self.transform(hidden_BTD, attend_B1TS, position_ids_BT, cache)

    def transform(
        self,
        hidden_BTD: Tensor,
        attend_B1TS: Tensor | None,
        position_ids_BT: Tensor,
        cache: KVCache | FixedCache | None = None,
        read_BR: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B,T,D], or [B,R,D] at `read_BR`, of embeddings; see `run_llama`."""
        return run_llama(self.llama, hidden_BTD, attend_B1TS, position_ids_BT, cache, read_BR)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Logits [...,V] of text."""
        return self.text_head(hidden_RD)  # type: ignore[no-any-return]

    def token_logps(self, hidden_RD: Tensor, targets_R: Tensor) -> Tensor:
        """Log-probabilities [R] in nats of text tokens, in float32."""
        return token_logps(hidden_RD, self.text_head, targets_R)


class TokenLogps(nn.Module):
    """Log-probabilities of the labelled tokens of a packed batch, texts or codes."""

    def __init__(self, network: ChatNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: PackedBatch, *, codes: bool = False) -> Tensor:
        """[L], or one for each code of a position, in nats, in float32."""
        network = self.network
        hidden_BRD = network.transform(
            network.embed(batch), batch.attend_B1TT, batch.position_ids_BT, read_BR=batch.read_BR
        )
        chosen_LD = hidden_BRD.flatten(0, 1).index_select(0, batch.source_L)
        score = network.code_logps if codes else network.token_logps
        return score(chosen_LD, batch.targets_L)


class PairModule(nn.Module):
    """Log-probabilities of packed pairs; what training wraps and calls."""

    def __init__(self, network: ChatNetwork) -> None:
        super().__init__()
        self.token_logps = TokenLogps(network)

    def forward(self, pairs: PackedPairs) -> BranchLogps:
        """Sums by branch; every code of a position counts as a token."""
        codes = pairs.modality == "image"
        return branch_logps(self.token_logps(pairs.batch, codes=codes), pairs)


def read_picture(features_F: npt.NDArray[Any], tokenizer: ChatTokenizer) -> list[Segment]:
    """Tree of a picture that is read: what every picture begins with, and its positions."""
    places = np.full(len(features_F), tokenizer.place, dtype=np.int64)
    return [Segment(tokenizer.picture_head()), Segment(places, parent=0, features=features_F)]


def pack_pairs(
    pairs: PairBatch,
    modality: Modality,
    tokenizer: ChatTokenizer,
    drawn_picture: Callable[[Ints], Segment],
) -> PackedPairs:
    """The trees of one modality of every pair, packed into rows of about equal length.

    `drawn_picture` is the leaf of a picture's codes behind a prompt.
    """
    trees: list[Tree] = []
    for index, text in enumerate(pairs.prompts):
        if modality == "caption":
            captions = pairs.captions_win[index], pairs.captions_lose[index]
            picture = read_picture(pairs.seen.rows[index], tokenizer)
            trees.append(captioned(picture, CAPTION_QUESTION, captions, tokenizer))
        else:
            prompt = tokenizer.prompt(text)
            if pairs.unprompted[index]:
                prompt = tokenizer.unprompted(prompt)
            branches = (pairs.drawn_win[index], pairs.drawn_lose[index])
            trees.append([Segment(prompt), *(drawn_picture(codes_N) for codes_N in branches)])
    return PackedPairs(pack_trees(trees, tokenizer.special.pad), len(trees), modality)


def pack_redraws(
    batch: RedrawBatch, tokenizer: ChatTokenizer, drawn_picture: Callable[..., Segment]
) -> PackedPairs:
    """Pictures drawn by what is read of them: the picture, the row of an empty prompt, the codes.

    `drawn_picture` is the leaf of a picture's codes behind a prompt, given its parent.
    """
    trees: list[Tree] = []
    for features_F, codes_N in zip(batch.seen.rows, batch.drawn, strict=True):
        turn = Segment(tokenizer.prompt(""), parent=POSITIONS)
        leaf_N = drawn_picture(codes_N, parent=POSITIONS + 1)
        trees.append([*read_picture(features_F, tokenizer), turn, leaf_N])
    packed = replace(pack_trees(trees, tokenizer.special.pad), mixed=True)
    return PackedPairs(packed, len(trees), "image", num_sides=1)


def captioned(
    picture: list[Segment], question: str, captions: Sequence[str], tokenizer: ChatTokenizer
) -> Tree:
    """A picture, a question about it, and several answers side by side."""
    turn = Segment(tokenizer.question(question), parent=POSITIONS)
    answers = (leaf(tokenizer.answer(text), POSITIONS + 1) for text in captions)
    return [*picture, turn, *answers]


def chat_reader(
    network: ChatNetwork, tokenizer: ChatTokenizer, logps: TokenLogps, max_reply: int
) -> Reader:
    """How a family reads whose rows are a tokenizer's."""
    return Reader(
        network,
        token_logps=logps,
        picture=lambda features_F: read_picture(features_F, tokenizer),
        caption_turn=tokenizer.question(CAPTION_QUESTION),
        turn=tokenizer.ask,
        said=tokenizer.answer,
        decode=tokenizer.decode,
        stop_id=tokenizer.special.eos,
        pad_id=tokenizer.special.pad,
        max_reply=max_reply,
    )
