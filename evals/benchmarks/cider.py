"""CIDEr-D of captions (Vedantam et al. 2015, arXiv 1411.5726), as in the COCO evaluation.

Its tokenizer is Stanford's PTBTokenizer, which needs Java; `tokens` follows its rules as far as
captions need them. docs/results.md says how far the two are apart.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain

Ngram = tuple[str, ...]
Vector = Mapping[Ngram, float]

MAX_N = 4
SIGMA = 6.0  # of the penalty on a difference in length, in words
SCALE = 10.0
# Words that keep their full stop.
_ABBREVIATIONS = r"(?:mr|mrs|ms|dr|st|jr|sr|vs|etc|inc|co|corp|ltd|no|mt|ft|ave)\."
_INITIALS = r"(?:[a-z]\.){2,}"
_NUMBER = r"[-+]?\d+(?:[.,:/]\d+)*(?:st|nd|rd|th|s)?(?![a-z]|-[^\W_])"
_WORD = r"(?:o')?[^\W_]+(?:[-/&@_.][^\W_]+)*"
_CLITIC = r"n't|'(?:s|re|ve|ll|d|m)\b"
_TOKEN = re.compile(
    rf"{_INITIALS}|{_ABBREVIATIONS}(?=\s)|{_NUMBER}|{_CLITIC}|[^\W_]+?(?=n't\b)|{_WORD}|\.\.\.|--|[^\s]"
)
# Two words that are written as one.
_JOINED = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
}
# What the evaluation drops. Of brackets it means to, but looks for names in capitals.
_DROPPED = set("'`.?!,:-;\"“”‘’") | {"--", "..."}
_BRACKETS = dict(zip("()[]{}", ("-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"), strict=True))
_WORDS = _JOINED | {bracket: (name,) for bracket, name in _BRACKETS.items()}


def tokens(caption: str) -> list[str]:
    """Words of a caption in lower case, without punctuation; clitics are words of their own."""
    found = _TOKEN.findall(caption.lower().replace("’", "'"))
    return [part for word in found if word not in _DROPPED for part in _WORDS.get(word, (word,))]


def cider(said: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption against the references of its picture; their mean is the score.

    The weight of an n-gram falls with the number of pictures whose references have it, so scores
    depend on which pictures are evaluated together.
    """
    counted = [[_ngrams(tokens(text)) for text in texts] for texts in references]
    pictures = Counter(chain.from_iterable(set().union(*texts) for texts in counted))
    scores = []
    for text, known in zip(said, counted, strict=True):
        mine = _Weighted(_ngrams(tokens(text)), pictures, len(counted))
        each = [mine.similarity(_Weighted(other, pictures, len(counted))) for other in known]
        scores.append(SCALE * sum(each) / len(each))
    return scores


def _ngrams(words: Sequence[str]) -> Counter[Ngram]:
    return Counter(
        tuple(words[first : first + n])
        for n in range(1, MAX_N + 1)
        for first in range(len(words) - n + 1)
    )


class _Weighted:
    """TF-IDF vectors of a text, one for each n."""

    def __init__(
        self, counts: Counter[Ngram], pictures: Mapping[Ngram, int], num_pictures: int
    ) -> None:
        self.vectors: list[dict[Ngram, float]] = [{} for _ in range(MAX_N)]
        for ngram, count in counts.items():
            rarity = math.log(num_pictures) - math.log(max(1, pictures.get(ngram, 0)))
            self.vectors[len(ngram) - 1][ngram] = count * rarity
        self.norms = [math.sqrt(sum(w * w for w in vector.values())) for vector in self.vectors]
        # Bigrams, as the evaluation's code measures length.
        self.length = sum(count for ngram, count in counts.items() if len(ngram) == 2)

    def similarity(self, other: _Weighted) -> float:
        """Mean over n of clipped cosines, with a penalty on a difference in length."""
        penalty = math.exp(-((self.length - other.length) ** 2) / (2 * SIGMA**2))
        total = 0.0
        for mine, theirs, *norms in zip(
            self.vectors, other.vectors, self.norms, other.norms, strict=True
        ):
            if all(norms):
                common = sum(
                    min(weight, theirs[ngram]) * theirs[ngram]
                    for ngram, weight in mine.items()
                    if ngram in theirs
                )
                total += common / (norms[0] * norms[1])
        return penalty * total / MAX_N
