"""CIDEr-D of captions (Vedantam et al. 2015, arXiv 1411.5726), as in the COCO evaluation.

Its tokenizer is Stanford's PTBTokenizer, which needs Java; `tokens` follows its rules as far as
captions need them. docs/results.md says how far the two are apart.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

Ngram = tuple[str, ...]

WORDS = "as by PTBTokenizer of stanford-corenlp 3.4.1"
MAX_N = 4
SIGMA = 6.0  # of the penalty on a difference in length, in words
SCALE = 10.0
# Words that keep their full stop, and those that do before a number.
_ABBREVIATIONS = (
    "mr mrs ms dr st jr sr vs etc inc co corp ltd mt ft ave rd gen sgt col lt capt prof rev "
    "sen gov bros blvd est ph.d dept univ jan feb mar apr jun jul aug sep sept oct nov dec "
    "mon tue tues wed thu thurs fri bldg assn mfg pvt adm cpl maj cmdr calif fla ind va cf al "
    "tel ext ala ariz colo conn ga kan ky md mich minn mo mont neb nev okla penn tenn vt wis "
    "wyo messrs mme mlle hon pres supt reps rep atty spc brig lieut cie plc pty intl natl ste "
    "sq treas wm jos alex elec cos"
).replace(" ", "|")
_NUMBERED = "no|nos|figs?|pp|art|ca|op"
_PART = r"(?:[dol]')?[^\W_]+"
# As in the published tokenizer the longest match counts, and of equally long ones the first rule's.
_RULES = [
    re.compile(rule, re.IGNORECASE)
    for rule in (
        r"(?:[a-z]\.)+",  # U.S.
        rf"(?:{_ABBREVIATIONS})\.(?![a-z])|(?:{_NUMBERED})\.(?=\s*\d)|[a-z]+\.(?=[,;:])",
        r"[-+]?(?:\d*(?:[.,:]\d+)+|\d+)",  # 10:30, and the number of 5,000ft
        r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}|(?:\d{1,4}-)?\d{1,4}/\d{1,4}",  # dates and fractions
        rf"{_PART}(?:[-\u2010\u2011]{_PART})*",  # 35mm, 90-degree
        r"[a-z][a-z0-9]*(?:[.!?][a-z][a-z0-9]*)+|[a-z0-9]+(?:_[a-z0-9]+)+",
        r"[a-z0-9][a-z0-9.,]*(?:-[a-z0-9]+)+",  # 5,000-foot
        r"[a-z0-9]+(?:-[a-z]+){0,2}(?:/[a-z0-9]+(?:-[a-z]+){0,2}){1,2}",  # his/her
        r"(?-i:[A-Z]+(?:[+&][A-Z]+)+|(?:Tex|Mass|Pa|Ill)\.)",  # AT&T
        r"(?:https?://|www\.)[^\s\"<>]+[^\s\"<>.,!?)]|[^\s@]+@[^\s@]+\.[a-z]{2,}",
        r"@[a-z_]\w*|#[a-z]\w*",
        r"'(?:s|re|ve|ll|d|m|em|til|cause)\b|'t(?=was\b)|(?<!\S)'\d\ds?\b(?![-:/.,°'’]\w?)",
        r"'n'|y'(?=(?:all|know)\b)|c'mon|ma'am|s'mores|cap'n",
        r"\.\.\.+|--+|[?!]{2,}",
        r"\S",
    )
]
# Taken apart before anything else: do n't, can not.
_NEGATED = re.compile(r"[^\W_]+?(?=n't\b)|n't\b", re.IGNORECASE)
# Two words that are written as one.
_JOINED = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
}
# Characters that the tokenizer writes otherwise, dashes of any length among them.
_WRITTEN = str.maketrans(
    dict.fromkeys("‒–—―\u0096\u0097", " -- ")
    | {"’": "'", "‘": "`", "…": " ... ", "£": "#", "€": "$", "¢": "cents"}
)
# What the evaluation drops. Of brackets it means to, but looks for names in capitals.
_DROPPED = set("'`.?!,:-;\"“”")
_MARKS = re.compile(r"\.\.\.+|--+")
_BRACKETS = dict(zip("()[]{}", ("-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"), strict=True))
_WORDS = _JOINED | {bracket: (name,) for bracket, name in _BRACKETS.items()}


def tokens(caption: str) -> list[str]:
    """Words of a caption in lower case, without punctuation; clitics are words of their own."""
    return [
        part
        for word in _cut(caption.translate(_WRITTEN))
        if word not in _DROPPED and not _MARKS.fullmatch(word)
        for part in _WORDS.get(word, (word,))
    ]


def _cut(text: str) -> Iterator[str]:
    """Words and punctuation, in lower case."""
    place = 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        found = _NEGATED.match(text, place) or max(
            filter(None, (rule.match(text, place) for rule in _RULES)), key=re.Match.end
        )
        yield found[0].lower()
        place = found.end()


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
