"""What the families of small models have in common: sizes, and how each makes its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tasks.pretrain.base import UNKNOWN, Learner, Recipe
from tasks.pretrain.tokenizer import T, TokenizerRecipe

MAX_TEXT_LEN = 18
"""Tokens of the longest prompt of the shapes world."""


@dataclass(frozen=True)
class Sizes:
    """Of a small model and its pictures, whose sides have `image_size` pixels.

    A code stands for a square of `patch` pixels and is the signs of `bits` numbers; the image
    tokenizer has `channels` at full resolution.
    """

    image_size: int
    patch: int
    bits: int
    channels: int
    width: int
    layers: int
    heads: int
    max_text_len: int
    mean: tuple[float, float, float]
    """Colour, from 0 to 1, that a vision tower is given as 0."""

    @property
    def side(self) -> int:
        """Codes along a side of a picture."""
        return self.image_size // self.patch

    @property
    def positions(self) -> int:
        """Tokens of the longest row that is expected: a picture, a prompt, some turns."""
        return max(256, self.side**2 + 8 * self.max_text_len)


@dataclass(frozen=True)
class Shipped(Generic[T]):
    """How the shipped model of the shapes world is made, and in which folder it lies."""

    folder: str
    sizes: Sizes
    bits: Callable[[], T]
    tokenizer: TokenizerRecipe
    network: Recipe


@dataclass(frozen=True)
class Family(Generic[T]):
    """How small models of a family are made.

    The ids of the tokens `specials` come first in a vocabulary; `sentences` are what the family's
    rows say beside the texts of a corpus.
    """

    bits: Callable[[Sizes], T]
    learner: Callable[[T, Tokenizer, Sizes], Learner]
    specials: Sequence[str]
    sentences: Sequence[str]
    shipped: Shipped[T]


def family_named(name: str) -> Family[Any]:
    """What the family's module beside this one says of it."""
    chosen: Family[Any] = import_module(f"tasks.pretrain.{name}").FAMILY
    return chosen


def fast_tokenizer(words: Tokenizer, **named: str) -> PreTrainedTokenizerFast:
    """Transformers' form, with the tokens that have a role; an unknown token where there is one."""
    if words.token_to_id(UNKNOWN) is not None:
        named["unk_token"] = UNKNOWN
    return PreTrainedTokenizerFast(tokenizer_object=words, **named)
