"""What the small models have in common whose language model is a Llama (`models.nn.chat`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.shapes.render import BACKGROUND, CANVAS
from models.nn.chat import ChatNetwork, TokenLogps, read_picture
from models.nn.packing import IGNORE, Segment, Tree, pack
from models.tokenizers.chat import CAPTION_QUESTION, ChatTokenizer
from tasks.pretrain.base import Mixture, Recipe
from tasks.pretrain.families import MAX_TEXT_LEN, Sizes
from tasks.pretrain.tokenizer import PATCH

RED, GREEN, BLUE = (round(value / 255, 3) for value in BACKGROUND)
SHAPES = Sizes(
    image_size=CANVAS,
    patch=PATCH,
    bits=8,
    channels=64,
    width=96,
    layers=5,
    heads=8,
    max_text_len=MAX_TEXT_LEN,
    mean=(RED, GREEN, BLUE),
)
"""Of the shipped models, about as large as the small Show-o."""
TOWER_HEADS = 4
# The reply to a question about one word depends on finding that word in the picture, which is not
# learned from a mixture of harder questions. Captions show what is in a picture in fewer steps.
LOOKING_UP = Mixture(
    kind_shares=(0.1, 0.04, 0.5, 0.06, 0.15, 0.05, 0.1), captioned_share=1.0, broken_share=0.2
)
READING = Mixture(
    kind_shares=(0.12, 0.05, 0.25, 0.08, 0.12, 0.08, 0.3), captioned_share=0.7, broken_share=0.3
)
RECIPE = Recipe(
    steps=1800,
    warmup=100,
    t2i_rows=8,
    num_scenes=6_000,
    first_mixture=LOOKING_UP,
    first_steps=500,
    mixture=READING,
)


def llama(sizes: Sizes) -> dict[str, object]:
    """Settings of the language model."""
    return {
        "hidden_size": sizes.width,
        "intermediate_size": 8 * sizes.width // 3,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads,
        "max_position_embeddings": sizes.positions,
        # Of the 12 numbers of a head some have to tell near tokens apart: with a base of 1,000,000
        # questions about directions, which name two shapes, stay at chance.
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }


def tower_width(bits: int) -> int:
    """Of a vision tower: about 64, and each bit of a code and each head has as many numbers."""
    step = math.lcm(bits, TOWER_HEADS)
    return step * math.ceil(64 / step)


class ChatLearner:
    """How both sides' rows are written and learnt, whatever stands for pictures in them."""

    def __init__(self, network: ChatNetwork, tokenizer: ChatTokenizer) -> None:
        self.tokenizer: ChatTokenizer = tokenizer
        self._module = TokenLogps(network)
        self._answer = cache(tokenizer.answer)
        self._question = cache(tokenizer.question)
        self._prompt = cache(tokenizer.prompt)

    def picture(self, seen: NDArray[np.generic]) -> list[Segment]:
        """Head and positions."""
        return read_picture(seen, self.tokenizer)

    def turn(self, question: str, answer: str, *, caption: bool, parent: int) -> Segment:
        """A turn of the user and the reply in one segment."""
        asked = self._question(CAPTION_QUESTION if caption else question)
        said = self._answer(answer)
        labels = np.concatenate((np.full(len(asked), IGNORE), said))
        return Segment(np.concatenate((asked, said[:-1])), parent=parent, labels=labels)

    def losses(self, generation: Sequence[Tree], understanding: Sequence[Tree]) -> list[Tensor]:
        """Run apart, since pictures that are drawn have a head of their own."""
        pad = self.tokenizer.special.pad
        drawn = self._module(pack(generation, pad), codes=True)
        return [-drawn.mean(), -self._module(pack(understanding, pad)).mean()]


def signs(num_bits: int) -> Tensor:
    """All vectors [2**Z,Z] of signs; bit z of an index is the sign at z."""
    indices_C1 = torch.arange(2**num_bits)[:, None]
    return (indices_C1 // 2 ** torch.arange(num_bits) % 2) * 2.0 - 1
