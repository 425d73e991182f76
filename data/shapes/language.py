"""What is said about scenes: prompts, captions, paraphrases.

A prompt says what its category tests and leaves the rest open, as GenEval's prompts do. A caption
describes the whole scene in one canonical form; `references` gives further forms that are equally
true, so that a scorer of captions need not punish them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from data.shapes.scene import SHAPES, Object, Scene

NUMBERS = ("zero", "one", "two", "three", "four")
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Mention:
    """What a text says of one kind of object; None leaves an attribute open."""

    count: int
    size: str | None
    color: str | None
    shape: str

    def fits(self, item: Object) -> bool:
        """Whether an object is of the mentioned kind."""
        return (
            item.shape == self.shape
            and self.color in (None, item.color)
            and self.size in (None, item.size)
        )

    def __str__(self) -> str:
        words = [w for w in (self.size, self.color) if w]
        if self.count == 1:
            return " ".join(["a", *words, self.shape])
        return " ".join([NUMBERS[self.count], *words, PLURALS[self.shape]])


@dataclass(frozen=True)
class Prompt:
    """What a prompt asks for: mentions, and optionally a relation of the first to the second."""

    mentions: tuple[Mention, ...]
    relation: str | None = None

    def __str__(self) -> str:
        joint = f" {self.relation} " if self.relation else " and "
        return joint.join(map(str, self.mentions))


def make_prompt(category: str, scene: Scene, rng: np.random.Generator) -> Prompt:
    """A prompt that the scene fulfils, in the manner of the category."""
    color = category in ("colors", "color_attr") or (
        category in ("counting", "position") and rng.random() < 0.5
    )
    size = category in ("colors", "color_attr") and rng.random() < 0.4
    groups = Counter((o.size, o.color, o.shape) for o in scene.objects)
    mentions = [
        Mention(n, s if size else None, c if color else None, shape)
        for (s, c, shape), n in groups.items()
    ]
    if category != "position":
        return Prompt(tuple(mentions))
    first, second = scene.objects
    relation = "left of" if first.row == second.row else "above"
    if rng.random() < 0.5:
        mentions, relation = mentions[::-1], INVERSE[relation]
    return Prompt(tuple(mentions), relation)


def describe(scene: Scene) -> Prompt:
    """Everything there is, in reading order, with sizes, colours and the relation of two."""
    groups = Counter((o.size, o.color, o.shape) for o in scene.objects)
    mentions = tuple(Mention(n, *look) for look, n in groups.items())
    if len(scene.objects) == 2 and len(groups) == 2:
        first, second = scene.objects
        if first.row == second.row:
            return Prompt(mentions, "left of")
        if first.column == second.column:
            return Prompt(mentions, "above")
    return Prompt(mentions)


def retell(said: Prompt) -> Prompt:
    """The same facts in the other order."""
    return Prompt(said.mentions[::-1], INVERSE[said.relation] if said.relation else None)


def caption(scene: Scene) -> str:
    """The canonical description."""
    return str(describe(scene))


def references(scene: Scene) -> list[str]:
    """All equivalent descriptions, the canonical one first."""
    said = describe(scene)
    return list(dict.fromkeys((str(said), str(retell(said)))))
