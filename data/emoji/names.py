"""What the Unicode name of an emoji says of its picture, and the questions that follow from it.

Names are those of Unicode CLDR: "woman running: facing right, medium skin tone". Their parts
exclude each other, so that a wrong choice is wrong for the picture and chance is known.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from core.runtime import derive_seed
from data.questions import QuestionRow, normalised

YELLOW = "yellow"
"""The skin of emoji whose name tells none."""
TONES = (YELLOW, "light", "medium-light", "medium", "medium-dark", "dark")
HAIR = ("red hair", "curly hair", "white hair", "bald", "blond hair", "beard")
STYLES = ("Noto", "Twemoji")
LEFT, RIGHT = "left", "right"
ADULTS = {"woman": "woman", "man": "man", "person": "person"}
PERSONS = {
    **ADULTS,
    **{"women": "woman", "men": "man", "people": "person"},
    **{"girl": "woman", "boy": "man", "child": "person"},
}
WHO = re.compile(rf"\b({'|'.join(PERSONS)})\b")
CHOICES = 4
TRIES = 40


@dataclass(frozen=True)
class Name:
    """A name in its parts."""

    what: str
    """The name without who it is and how they look."""
    who: tuple[str, ...] = ()
    """One for each figure; empty where the name tells none."""
    tones: tuple[str, ...] = ()
    hair: str | None = None
    turned: bool = False
    """Faces right, where the emoji of the same name without it faces left."""

    @property
    def couple(self) -> bool:
        """Shows two, whose skin may differ."""
        return self.what in ("kiss", "couple with heart", "holding hands", "handshake")


@dataclass(frozen=True)
class Emoji:
    """An emoji in one style, without its picture."""

    code: str
    """Code points in hex, with hyphens."""
    style: str
    group: str
    """Subcategory of Unicode's list, such as person-role."""
    title: str
    """CLDR's short name."""
    keywords: tuple[str, ...]

    @property
    def record_id(self) -> str:
        """Unique among all."""
        return f"{self.code}-{self.style.casefold()}"

    @property
    def caption(self) -> str:
        """The name, and whose drawing it is."""
        return f"{self.title}, {self.style}"

    @property
    def name(self) -> Name:
        """The parts of the title."""
        return parse(self.title)


def parse(title: str) -> Name:
    """The parts of a CLDR short name."""
    head, _, rest = title.partition(": ")
    traits = rest.split(", ") if rest else []
    found = WHO.findall(head)
    figures = found or [trait for trait in traits if trait in PERSONS]
    what = " ".join(re.sub(r"^(and|, )\s*", "", WHO.sub("", head).strip()).split())
    return Name(
        # "man: red hair" and "boy" are nothing else.
        what or ("adult" if found[0] in ADULTS else "child"),
        tuple(PERSONS[figure] for figure in figures),
        tuple(t.removesuffix(" skin tone") for t in traits if t.endswith(" skin tone")),
        next((trait for trait in traits if trait in HAIR), None),
        "facing right" in traits,
    )


class World:
    """What all emoji show, from which wrong choices are taken."""

    def __init__(self, emoji: Iterable[Emoji]) -> None:
        whats, whos = (
            defaultdict[str, dict[str, None]](dict),
            defaultdict[str, dict[str, None]](dict),
        )
        self._turns: set[str] = set()
        self._hair: set[str] = set()
        self._keywords: dict[str, tuple[str, ...]] = {}
        for one in emoji:
            name = one.name
            whats[one.group][name.what] = None
            whos[name.what][_who(name)] = None
            if name.turned:
                self._turns.add(name.what)
            if name.hair:
                self._hair.add(name.what)
            self._keywords[name.what] = one.keywords
        self._whats = {group: sorted(found) for group, found in whats.items()}
        self._whos = {what: sorted(found) for what, found in whos.items()}

    def questions(self, emoji: Emoji) -> list[QuestionRow]:
        """Questions about an emoji, the same every time."""
        rng = np.random.default_rng(derive_seed("emoji questions", emoji.record_id))
        return [question for question in self._questions(emoji, rng) if question]

    def _questions(self, emoji: Emoji, rng: np.random.Generator) -> Iterator[QuestionRow | None]:
        name = emoji.name
        whats = [what for what in self._whats[emoji.group] if what != name.what]
        yield _question("what", "What is shown?", name.what, whats, rng)
        whos = [who for who in self._whos[name.what] if who != _who(name)]
        yield _question("who", "Who is it?", _who(name), whos, rng)
        for side, tone in zip((LEFT, RIGHT), _tones(name), strict=False):
            place = f" on the {side}" if name.couple else ""
            yield _question("skin tone", f"Which skin tone{place}?", tone, TONES, rng)
        if name.what in self._hair and name.hair:
            yield _question("hair", "How is the hair?", name.hair, HAIR, rng)
        if name.what in self._turns:
            sides = (LEFT, RIGHT)
            yield _question("direction", "Facing where?", sides[name.turned], sides, rng)
        yield _question("style", "Whose style?", emoji.style, STYLES, rng)
        yield self._keyword(emoji, rng)

    def _keyword(self, emoji: Emoji, rng: np.random.Generator) -> QuestionRow | None:
        """Which word goes with it; those of the name itself would be asked twice."""
        said = set(re.findall(r"[a-z]+", emoji.caption.casefold()))
        own = [w for w in emoji.keywords if not set(re.findall(r"[a-z]+", w.casefold())) & said]
        if not own:
            return None
        answer = own[int(rng.integers(len(own)))]
        taken = {normalised(word) for word in (*emoji.keywords, *said)}
        others: list[str] = []
        whats = list(self._keywords)
        for index in rng.integers(len(whats), size=TRIES):
            words = self._keywords[whats[int(index)]]
            word = words[int(rng.integers(len(words)))] if words else ""
            if normalised(word) and normalised(word) not in taken:
                taken.add(normalised(word))
                others.append(word)
        return _question("keyword", "Which word fits?", answer, others, rng)


def _who(name: Name) -> str:
    """Figures of a name; "firefighter" and "kiss" without any are persons."""
    return " and ".join(name.who or ("person",) * (1 + name.couple))


def _tones(name: Name) -> tuple[str, ...]:
    """The skin of each figure; one that is told is that of both."""
    tones = name.tones or (YELLOW,)
    return tones * 2 if name.couple and len(tones) == 1 else tones


def _question(
    kind: str, text: str, answer: str, among: Sequence[str], rng: np.random.Generator
) -> QuestionRow | None:
    """The question with at most `CHOICES` choices; None without a wrong one."""
    others = [str(other) for other in rng.permutation([a for a in among if a != answer])]
    choices = [answer, *others[: CHOICES - 1]]
    if len(choices) < 2:
        return None
    shown = [choices[i] for i in rng.permutation(len(choices))]
    return {"type": kind, "question": text, "choices": shown, "answer": answer}
