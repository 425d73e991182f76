"""Multiple-choice questions from captions alone: rules of English, and what other captions say.

For pools that bring no questions, where no language model is at hand. Weaker than questions that a
model writes (TIFA): nobody checks that a wrong choice is wrong for the picture, and what a caption
does not say is not asked. Every question has four choices, so that chance is known.

Wrong choices are words of the same kind from other captions of the pool that are about as frequent,
so that the words alone do not give the answer away.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from core.runtime import derive_seed
from data.questions import NUMBERS, QuestionRow, normalised, token_f1

CHOICES = 4
KEPT_CAPTIONS = 5000  # of the pool, as wrong choices
NEAR = 40  # words of about the same frequency among which wrong choices are drawn
TOO_NEAR = 0.6  # F1 of the tokens of two captions that may fit the same picture
TRIES = 200
LONGEST = 120  # characters of a caption that is offered as a choice

COLORS = (
    *("black", "white", "red", "green", "blue", "yellow", "brown", "orange", "pink", "purple"),
    *("gray", "silver", "golden", "beige", "turquoise"),
)
COLOR_WORDS = {**{color: color for color in COLORS}, "grey": "gray", "gold": "golden"}
COUNTS = {word: number for number, word in enumerate(NUMBERS) if number > 0}
PERSON_WORDS = """
man men woman women person people boy boys girl girls child children kid kids guy guys lady
ladies baby babies adult adults player players rider riders someone
"""
# Heads of phrases that name no thing that can be seen.
EMPTY_WORDS = """
picture pictures photo photos photograph image images view views shot background foreground
front back top bottom side middle center group bunch couple pair lot lots number variety
kind type types way time day scene area piece pieces part row set other one ones
"""
DETERMINING_WORDS = """
a an the some his her their its my your our this that these those another each every
"""
STOP_WORDS = """
is are was were be been being has have had do does did can could will would may might must
in on at of to and or but by from with without near under over above below behind beside
between through into onto off out up down around along across against during while as for
that which who whom whose where when than then there here it he she they them him i you we
not no very so too also just more most less least all both either neither
"""
PERSONS = set(PERSON_WORDS.split())
EMPTY_HEADS = set(EMPTY_WORDS.split())
DETERMINERS = set(DETERMINING_WORDS.split())
STOPS = set(STOP_WORDS.split())
OBJECT_TEXTS = (
    "Which of these is in the picture?",
    "Which of these is in the picture as well?",
    "Which of these is in the picture, too?",
)
"""A record's questions differ in their texts, by which answers are told apart."""
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+|[.,;:!?()]")


@dataclass(frozen=True)
class Phrase:
    """`two small dogs`: a head with what stands before it."""

    head: str
    modifiers: tuple[str, ...] = ()
    count: int | None = None


class Ranked:
    """Words of a kind by how many captions have them, the most frequent first."""

    def __init__(self, counts: Counter[str]) -> None:
        usable = (word for word in counts if word not in EMPTY_HEADS)
        self.names = sorted(usable, key=lambda word: (-counts[word], word))
        self._place = {word: place for place, word in enumerate(self.names)}

    def around(self, word: str, number: int) -> list[str]:
        """Words about as frequent as this one."""
        first = max(0, self._place.get(word, len(self.names)) - number // 2)
        return self.names[first : first + number]


@dataclass(frozen=True)
class Words:
    """What the captions of a pool say, by kind of word, and some of the captions."""

    heads: Ranked
    modifiers: Ranked
    actions: Ranked
    content: Ranked
    captions: Sequence[str]


def words_of(captions: Iterable[str]) -> Words:
    """What all captions of a pool say; the first ones are kept as wrong choices."""
    heads, modifiers, doing, content = (Counter[str]() for _ in range(4))
    kept: list[str] = []
    for caption in captions:
        found = phrases(caption)
        heads.update({phrase.head for phrase in found})
        modifiers.update({word for phrase in found for word in attributes(phrase)})
        doing.update(set(actions(caption)))
        content.update(set(content_words(caption)))
        if len(kept) < KEPT_CAPTIONS:
            kept.append(caption)
    return Words(Ranked(heads), Ranked(modifiers), Ranked(doing), Ranked(content), kept)


def tokens_of(caption: str) -> list[str]:
    """Small words, numbers and punctuation."""
    return [token.casefold() for token in WORD.findall(caption)]


def content_words(caption: str) -> list[str]:
    """Words that say something, in their order."""
    known = DETERMINERS | STOPS
    return [t for t in tokens_of(caption) if t[0].isalpha() and t not in known and len(t) > 2]


def actions(caption: str) -> list[str]:
    """`riding`, `standing`: what somebody does, as captions put it after a noun."""
    tokens = tokens_of(caption)
    return [
        word
        for before, word in zip(["", *tokens], tokens, strict=False)
        if _is_action(word) and before and before not in DETERMINERS | STOPS
    ]


def _is_action(word: str) -> bool:
    return word.endswith("ing") and len(word) > 5 and word not in ("building", "morning", "evening")


def phrases(caption: str) -> list[Phrase]:
    """Noun phrases that begin with a determiner or a number."""
    found: list[Phrase] = []
    tokens = tokens_of(caption)
    position = 0
    while position < len(tokens):
        token = tokens[position]
        position += 1
        if token not in DETERMINERS and token not in COUNTS and not token.isdigit():
            continue
        inside: list[str] = []
        while position < len(tokens) and _goes_on(tokens[position], inside):
            inside.append(tokens[position])
            position += 1
        if inside and inside[-1] not in EMPTY_HEADS | set(COLOR_WORDS) and len(inside[-1]) > 2:
            count = COUNTS.get(token, int(token) if token.isdigit() else None)
            found.append(Phrase(inside[-1], tuple(inside[:-1]), count))
    return found


def _goes_on(token: str, inside: Sequence[str]) -> bool:
    if not token[0].isalpha() or token in DETERMINERS | STOPS or len(inside) >= 4:
        return False
    if inside and token in ("left", "right"):
        return False
    # A participle behind a noun begins what is said of it: "a plate topped with".
    return not (inside and (_is_action(token) or (token.endswith("ed") and token != "red")))


def attributes(phrase: Phrase) -> list[str]:
    """What stands before a head and is neither a colour nor a number."""
    return [w for w in phrase.modifiers if w not in COLOR_WORDS and w not in COUNTS and len(w) > 2]


def write_questions(record_id: str, caption: str, words: Words, most: int) -> list[QuestionRow]:
    """At most `most` questions about a caption, the same every time; kinds take turns."""
    rng = np.random.default_rng(derive_seed("caption questions", record_id))
    kinds = [
        list(_which_caption(caption, words, rng)),
        list(_colors(caption, rng)),
        list(_counts(caption, rng)),
        list(_things(caption, words, rng)),
        list(_attributes(caption, words, rng)),
        list(_actions(caption, words, rng)),
    ]
    if sum(map(len, kinds)) < 3:
        kinds.append(list(_missing_words(caption, words, rng)))
    written: list[QuestionRow] = []
    seen: set[str] = set()
    while any(kinds) and len(written) < most:
        for waiting in kinds:
            if waiting and len(written) < most:
                question = waiting.pop(0)
                # Two that read alike could not be told apart, and one would answer the other.
                key = normalised(question["question"])
                if key not in seen:
                    seen.add(key)
                    written.append(question)
    return written


def _question(
    kind: str, text: str, answer: str, others: Sequence[str], rng: np.random.Generator
) -> Iterator[QuestionRow]:
    """The question, unless there are too few wrong choices or some say the same."""
    choices = [answer, *others]
    if len({normalised(choice) for choice in choices}) == CHOICES and all(map(normalised, choices)):
        order = rng.permutation(CHOICES)
        yield {
            "type": kind,
            "question": text,
            "choices": [choices[i] for i in order],
            "answer": answer,
        }


def _which_caption(caption: str, words: Words, rng: np.random.Generator) -> Iterator[QuestionRow]:
    """Which of four captions fits; of about the same length, or the length would tell."""
    if len(caption) > LONGEST or len(words.captions) < CHOICES:
        return
    others: list[str] = []
    for index in rng.integers(len(words.captions), size=TRIES):
        other = words.captions[int(index)]
        alike = 0.5 <= len(other.split()) / max(len(caption.split()), 1) <= 2.0
        far = all(token_f1(other, known) < TOO_NEAR for known in (caption, *others))
        if alike and far and len(other) <= LONGEST:
            others.append(other)
        if len(others) == CHOICES - 1:
            yield from _question("caption", "Which caption fits the picture?", caption, others, rng)
            return


def _colors(caption: str, rng: np.random.Generator) -> Iterator[QuestionRow]:
    said = {COLOR_WORDS[t] for t in tokens_of(caption) if t in COLOR_WORDS}
    for phrase in phrases(caption):
        colors = [COLOR_WORDS[word] for word in phrase.modifiers if word in COLOR_WORDS]
        if len(colors) == 1:
            unsaid = [color for color in COLORS[:10] if color not in said]
            others = [str(color) for color in rng.permutation(unsaid)[: CHOICES - 1]]
            text = f"What color {_verb(phrase)} the {phrase.head}?"
            yield from _question("color", text, colors[0], others, rng)


def _counts(caption: str, rng: np.random.Generator) -> Iterator[QuestionRow]:
    for phrase in phrases(caption):
        # "A" may mean any one of several, and large numbers are seldom exact.
        if phrase.count is None or not 2 <= phrase.count <= 9:
            continue
        near = [n for n in range(1, 10) if n != phrase.count and abs(n - phrase.count) <= 3]
        others = [NUMBERS[int(n)] for n in rng.permutation(near)[: CHOICES - 1]]
        text = f"How many {phrase.head} are there?"
        yield from _question("counting", text, NUMBERS[phrase.count], others, rng)


def _things(caption: str, words: Words, rng: np.random.Generator) -> Iterator[QuestionRow]:
    heads = dict.fromkeys(phrase.head for phrase in phrases(caption))
    for text, head in zip(OBJECT_TEXTS, heads, strict=False):
        others = _others(head, words.heads, caption, rng)
        yield from _question("object", text, head, others, rng)


def _attributes(caption: str, words: Words, rng: np.random.Generator) -> Iterator[QuestionRow]:
    for phrase in phrases(caption):
        for word in attributes(phrase):
            others = _others(word, words.modifiers, caption, rng)
            text = f"Which word describes the {phrase.head}?"
            yield from _question("attribute", text, word, others, rng)


def _actions(caption: str, words: Words, rng: np.random.Generator) -> Iterator[QuestionRow]:
    for word in actions(caption)[:1]:
        others = _others(word, words.actions, caption, rng)
        yield from _question("activity", "What is being done?", word, others, rng)


def _missing_words(caption: str, words: Words, rng: np.random.Generator) -> Iterator[QuestionRow]:
    """A caption with a gap, for those that are no sentences: names, lists of tags."""
    for word in dict.fromkeys(content_words(caption)):
        others = _others(word, words.content, caption, rng)
        gap = re.sub(rf"(?i)(?<!\w){re.escape(word)}(?!\w)", "___", caption)
        if len(gap) <= LONGEST and gap != caption:
            text = f"Which word is missing in this caption: {gap}"
            yield from _question("word", text, word, others, rng)


def _others(word: str, kind: Ranked, caption: str, rng: np.random.Generator) -> list[str]:
    """Words of the same kind that this caption does not have, about as frequent as its own."""
    said = {_stem(token) for token in tokens_of(caption)}
    people = bool(PERSONS & set(tokens_of(caption)))
    for near in (kind.around(word, NEAR), kind.names):
        chosen: list[str] = []
        for index in rng.permutation(len(near)):
            other = near[int(index)]
            known = said | {_stem(one) for one in chosen}
            if _stem(other) not in known and not (people and other in PERSONS):
                chosen.append(other)
            if len(chosen) == CHOICES - 1:
                return chosen
    return []


def _stem(word: str) -> str:
    """A word without the ending of a plural, so that `dog` and `dogs` are one."""
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ses", "xes", "zes", "ches", "shes")) and len(word) > 4:
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _verb(phrase: Phrase) -> str:
    plural = phrase.head.endswith("s") and not phrase.head.endswith(("ss", "us"))
    return "are" if plural or (phrase.count is not None and phrase.count > 1) else "is"
