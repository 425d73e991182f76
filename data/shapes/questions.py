"""Multiple-choice questions about prompts and scenes, and their exact answers.

Questions of a prompt ask for what it says and, since a prompt names all there is, for what must
not be there: strangers, swapped attributes, wrong counts, shapes that are no shape. Without those
a generator is rewarded for pictures that please its own judge.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data.shapes.language import NUMBERS, PLURALS, Mention, Prompt
from data.shapes.scene import COLORS, MAX_OBJECTS, SHAPES, SIZES, Object, Scene, relation_holds

YES_NO = ("yes", "no")
WHOLE = "is every shape whole?"
HOW_MANY = "how many objects are there?"
DIRECTIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


@dataclass(frozen=True)
class Question:
    """A question with its kind, the choices offered and the right one."""

    type: str
    question: str
    choices: tuple[str, ...]
    answer: str


def _thing(size: str | None, color: str | None, shape: str) -> str:
    return " ".join(w for w in (size, color, shape) if w)


def prompt_questions(prompt: Prompt, rng: np.random.Generator) -> list[Question]:
    """All questions of a prompt, fixed by the prompt and the generator."""
    asked = [Question("shape", WHOLE, YES_NO, "yes")]
    total = sum(m.count for m in prompt.mentions)
    asked.append(Question("counting", HOW_MANY, NUMBERS[1:], NUMBERS[total]))
    for mention in prompt.mentions:
        asked += _mention_questions(mention)
    asked += _absent_questions(prompt, rng)
    if prompt.relation:
        first, second = prompt.mentions
        asked.append(_where(first, second, prompt.relation))
    return asked


def _mention_questions(m: Mention) -> list[Question]:
    asked = [Question("object", f"is there a {m.shape}?", YES_NO, "yes")]
    if m.count > 1:
        how_many = f"how many {PLURALS[m.shape]} are there?"
        asked.append(Question("counting", how_many, NUMBERS[1:], NUMBERS[m.count]))
    if m.color:
        color = f"what color is the {m.shape}?"
        asked.append(Question("color", color, tuple(COLORS), m.color))
    if m.size:
        asked.append(Question("size", f"what size is the {m.shape}?", SIZES, m.size))
    return asked


def _where(a: Mention, b: Mention, relation: str) -> Question:
    question = f"where is the {a.shape} from the {b.shape}?"
    return Question("spatial", question, tuple(DIRECTIONS), relation.split()[0])


def _absent_questions(prompt: Prompt, rng: np.random.Generator) -> list[Question]:
    """One stranger, and the colours of two mentions swapped."""
    named = {m.shape for m in prompt.mentions}
    stranger = str(rng.choice([s for s in SHAPES if s not in named]))
    asked = [Question("object", f"is there a {stranger}?", YES_NO, "no")]
    if len(prompt.mentions) == 2:
        a, b = prompt.mentions
        if a.color and b.color and a.color != b.color:
            swapped = _thing(None, b.color, a.shape)
            asked.append(Question("color", f"is there a {swapped}?", YES_NO, "no"))
    return asked


_SIZE, _COLOR, _SHAPE = "|".join(SIZES), "|".join(COLORS), "|".join(SHAPES)
_PLURAL = "|".join(PLURALS.values())
_THING = rf"(?:({_SIZE}) )?(?:({_COLOR}) )?({_SHAPE})"


def _unique(scene: Scene, shape: str, attribute: str) -> str | None:
    values = {getattr(o, attribute) for o in scene.objects if o.shape == shape}
    return str(values.pop()) if len(values) == 1 else None


def _there_is(scene: Scene, size: str | None, color: str | None, shape: str) -> str:
    wanted = Mention(1, size, color, shape)
    return YES_NO[not any(wanted.fits(o) for o in scene.objects)]


def _count(items: list[Object]) -> str | None:
    return NUMBERS[len(items)] if items else None


def _direction(scene: Scene, first: str, second: str) -> str | None:
    """Where one shape is seen from the other; None for diagonals and where there are several."""
    a = [o for o in scene.objects if o.shape == first]
    b = [o for o in scene.objects if o.shape == second]
    if len(a) != 1 or len(b) != 1:
        return None
    found = [word for word, relation in DIRECTIONS.items() if relation_holds(a[0], relation, b[0])]
    return found[0] if len(found) == 1 else None


# Each kind of question, and how it is answered from a scene. None: no choice would be right.
_RULES: tuple[tuple[str, Callable[..., str | None]], ...] = (
    (re.escape(WHOLE), lambda s: YES_NO[s.malformed > 0]),
    (re.escape(HOW_MANY), lambda s: _total(s)),
    (rf"is there a {_THING}\?", _there_is),
    (
        rf"how many ({_PLURAL}) are there\?",
        lambda s, plural: _count([o for o in s.objects if PLURALS[o.shape] == plural]),
    ),
    (rf"what color is the ({_SHAPE})\?", lambda s, shape: _unique(s, shape, "color")),
    (rf"what size is the ({_SHAPE})\?", lambda s, shape: _unique(s, shape, "size")),
    (rf"where is the ({_SHAPE}) from the ({_SHAPE})\?", _direction),
)


def _total(scene: Scene) -> str | None:
    things = len(scene.objects) + scene.malformed
    return NUMBERS[things] if 0 < things <= MAX_OBJECTS else None


def answer(question: str, scene: Scene) -> str | None:
    """The true answer for a scene; None where the question has none there.

    Raises ValueError for a question that is not of this world.
    """
    for pattern, rule in _RULES:
        match = re.fullmatch(pattern, question)
        if match:
            return rule(scene, *match.groups())
    raise ValueError(f"not a question of the shapes world: {question!r}")


# Whole, how many, is there, how many of a shape, colour, size, relation. What is hard to learn, or
# has to be told apart in the model's own pictures, is asked more often. Most scenes have no
# relation to ask for, and the others only two, so its share of what is asked is an eighth.
KIND_SHARES = (0.12, 0.04, 0.12, 0.06, 0.1, 0.06, 0.5)


def training_questions(
    scene: Scene,
    rng: np.random.Generator,
    num: int,
    kind_shares: tuple[float, ...] = KIND_SHARES,
) -> list[Question]:
    """Random questions that have an answer in the scene, yes and no about equally often.

    `kind_shares` are of the kinds in the order of `KIND_SHARES`.
    """
    asked: list[Question] = []
    while len(asked) < num:
        kind = int(rng.choice(len(kind_shares), p=kind_shares))
        question = _random_question(kind, scene, rng)
        right = question and answer(question.question, scene)
        if question and right and question not in asked:
            asked.append(Question(question.type, question.question, question.choices, right))
    return asked


def _random_question(kind: int, scene: Scene, rng: np.random.Generator) -> Question | None:
    present = [o.shape for o in scene.objects] or list(SHAPES)
    shape = str(rng.choice(present if rng.random() < 0.5 else SHAPES))
    item = scene.objects[int(rng.integers(len(scene.objects)))] if scene.objects else None
    color = str(rng.choice([o.color for o in scene.objects] or list(COLORS)))
    if kind == 0:
        return Question("shape", WHOLE, YES_NO, "")
    if kind == 1:
        return Question("counting", HOW_MANY, NUMBERS[1:], "")
    if kind == 2:
        tinted = color if rng.random() < 0.5 else None
        return Question("object", f"is there a {_thing(None, tinted, shape)}?", YES_NO, "")
    if item is None:
        return None
    if kind == 3:
        ask = f"how many {PLURALS[item.shape]} are there?"
        return Question("counting", ask, NUMBERS[1:], "")
    if kind == 4:
        return Question("color", f"what color is the {item.shape}?", tuple(COLORS), "")
    if kind == 5:
        return Question("size", f"what size is the {item.shape}?", SIZES, "")
    other = str(rng.choice(present))
    if other == item.shape:
        return None
    ask = f"where is the {item.shape} from the {other}?"
    return Question("spatial", ask, tuple(DIRECTIONS), "")
