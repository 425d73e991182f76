"""Captions of a pool as what a caption encoder learns to compare: by their words, and their order.

A word counts by how few captions have it, so that what all of them say weighs nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from tokenizers import Tokenizer

from tasks.pretrain.caption_encoder import SPECIALS, Matrix
from tasks.pretrain.records import byte_tokenizer

WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
ORDER_WEIGHT = 0.3
"""Of two neighbouring words, as a share of the mean of both."""
OTHER_SHARE, SAME_SHARE = 0.2, 0.1
"""Pairs of two captions, and of a caption with itself; all others differ in a word or two."""
VOCABULARY = 4000

Fact = tuple[str, ...]


class PoolPairs:
    """A `tasks.pretrain.caption_encoder.CaptionPairs` of captions."""

    def __init__(self, captions: Sequence[str]) -> None:
        self._captions = list(dict.fromkeys(captions))
        self._words = [WORD.findall(caption) for caption in self._captions]
        self._counts = Counter(word.casefold() for words in self._words for word in set(words))
        self._tokenizer = byte_tokenizer(
            [text for caption in self._captions for text in (caption, f" {caption}")],
            VOCABULARY,
            SPECIALS,
        )
        longest = max(len(self._tokenizer.encode(caption).ids) for caption in self._captions)
        self.max_tokens = 2 * longest

    def tokenizer(self) -> Tokenizer:
        """Byte-level."""
        return self._tokenizer

    def draw(self, num_pairs: int, rng: np.random.Generator) -> tuple[list[str], Matrix]:
        """Captions and what a word or two make of them."""
        texts: list[str] = []
        for index in rng.integers(len(self._captions), size=num_pairs):
            texts += [self._captions[index], self._other(int(index), rng)]
        return texts, self.similarity(texts)

    def _other(self, index: int, rng: np.random.Generator) -> str:
        roll = rng.random()
        if roll < OTHER_SHARE:
            return self._captions[int(rng.integers(len(self._captions)))]
        if roll < OTHER_SHARE + SAME_SHARE:
            return self._captions[index]
        text = self._captions[index]
        for _ in range(1 + int(rng.integers(2))):
            words = list(WORD.finditer(text))
            if not words:
                break
            place = words[int(rng.integers(len(words)))]
            others = self._words[int(rng.integers(len(self._words)))]
            # A word of another caption in its place, or none.
            new = others[int(rng.integers(len(others)))] if others and rng.random() < 0.75 else ""
            text = (text[: place.start()] + new + text[place.end() :]).strip()
        return text

    def similarity(self, texts: Sequence[str]) -> Matrix:
        """F1 [T, T] of the weights of what each two texts share."""
        said = [self._facts(text) for text in texts]
        index = {fact: i for i, fact in enumerate(sorted(set().union(*said)))}
        weights_F = np.array([self._weight(fact) for fact in index])
        counts_TF = np.zeros((len(texts), len(index)), np.float32)
        for row, facts in enumerate(said):
            for fact, count in facts.items():
                counts_TF[row, index[fact]] = count
        total_T = counts_TF @ weights_F
        shared_TT = np.zeros((len(texts), len(texts)))
        for row, counts_F in enumerate(counts_TF):
            here = np.flatnonzero(counts_F)
            shared_TT[row] = np.minimum(counts_TF[:, here], counts_F[here]) @ weights_F[here]
        both_TT = total_T[:, None] + total_T
        similarity = np.where(both_TT > 0, 2 * shared_TT / np.maximum(both_TT, 1e-9), 1.0)
        return np.asarray(similarity, np.float32)

    @staticmethod
    def _facts(text: str) -> Counter[Fact]:
        words = [word.casefold() for word in WORD.findall(text)]
        return Counter([*((w,) for w in words), *pairwise(words)])

    def _weight(self, fact: Fact) -> float:
        total = len(self._captions) + 1
        rarity = [np.log(total / max(1, self._counts[word])) for word in fact]
        return float(np.mean(rarity)) * (1.0 if len(fact) == 1 else ORDER_WEIGHT)
