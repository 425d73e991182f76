"""Scene graphs of the shapes world: what may stand where, and which split a scene belongs to.

A canvas has two rows and two columns of cells; a cell holds at most one object. Splits are disjoint
by construction: a scene's split is a function of its content, and some compositions (colour-shape
pairs and spatial relations of two shapes) are allowed in the test split only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

COLORS = {
    "red": (214, 48, 49),
    "green": (46, 160, 67),
    "blue": (40, 96, 214),
    "yellow": (240, 196, 32),
    "purple": (142, 68, 173),
    "black": (38, 38, 42),
}
# Shapes share their halves (`data.shapes.render`), so that a colour-shape pair which training never
# shows is made of pieces that it does show: those of the other shapes in that colour.
SHAPES = ("circle", "square", "diamond", "dome", "house", "heart")
SIZES = ("small", "large")
CATEGORIES = ("single_object", "colors", "two_object", "counting", "position", "color_attr")
GRID = 2
MAX_OBJECTS = GRID * GRID

Split = Literal["train", "pool", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "pool", "validation", "test")
_SPLIT_BUCKETS: dict[Split, range] = {
    "train": range(0, 55),
    "pool": range(55, 73),
    "validation": range(73, 83),
    "test": range(83, 100),
}

HELD_OUT_PAIRS = frozenset(
    {("red", "dome"), ("blue", "house"), ("yellow", "heart"), ("green", "diamond")}
)
# (first shape, relation, second shape): directly beside or above each other.
HELD_OUT_RELATIONS = frozenset({("circle", "left of", "house"), ("square", "above", "diamond")})


@dataclass(frozen=True, order=True)
class Object:
    """One shape: its cell in reading order, and its looks."""

    cell: int
    shape: str
    color: str
    size: str

    @property
    def row(self) -> int:
        return self.cell // GRID

    @property
    def column(self) -> int:
        return self.cell % GRID


@dataclass(frozen=True)
class Scene:
    """Objects in reading order, and how many things on the canvas are no known shape."""

    objects: tuple[Object, ...]
    malformed: int = 0

    @property
    def digest(self) -> str:
        """Identity of the scene, whatever the order of its objects."""
        return hashlib.sha256(repr(sorted(self.objects)).encode()).hexdigest()


def relation_holds(a: Object, relation: str, b: Object) -> bool:
    """Whether a stands in the relation to b; diagonal neighbours satisfy two relations."""
    return {
        "left of": a.column < b.column,
        "right of": a.column > b.column,
        "above": a.row < b.row,
        "below": a.row > b.row,
    }[relation]


def held_out(scene: Scene) -> bool:
    """Whether the scene contains a composition that only the test split may show."""
    if any((o.color, o.shape) in HELD_OUT_PAIRS for o in scene.objects):
        return True
    return any(
        (a.shape, relation, b.shape) in HELD_OUT_RELATIONS and relation_holds(a, relation, b)
        for a in scene.objects
        for b in scene.objects
        for relation in ("left of", "above")
    )


def split_of(scene: Scene) -> Split:
    """The only split the scene may be used in."""
    if held_out(scene):
        return "test"
    bucket = int(scene.digest[:12], 16) % 100
    return next(split for split, buckets in _SPLIT_BUCKETS.items() if bucket in buckets)


def sample_scene(category: str, split: Split, rng: np.random.Generator) -> Scene:
    """Draw a scene of a GenEval-like category from a split, by rejection."""
    while True:
        scene = _draw(category, rng)
        if split_of(scene) == split:
            return scene


def _draw(category: str, rng: np.random.Generator) -> Scene:
    if category in ("single_object", "colors"):
        looks = [_look(rng)]
    elif category == "counting":
        looks = _counted_looks(rng)
    else:
        looks = [_look(rng), _look(rng)]
        while looks[0][0] == looks[1][0] or (
            category == "color_attr" and looks[0][1] == looks[1][1]
        ):
            looks[1] = _look(rng)
    cells = [int(cell) for cell in rng.permutation(MAX_OBJECTS)[: len(looks)]]
    if category == "position":
        cells = _adjacent_cells(rng)
    placed = zip(cells, looks, strict=True)
    return Scene(tuple(sorted(Object(cell, *look) for cell, look in placed)))


def _counted_looks(rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """Two to four alike, or two or three alike beside one of another shape."""
    look = _look(rng)
    if rng.random() < 0.5:
        return [look] * int(rng.integers(2, 5))
    other = _look(rng)
    while other[0] == look[0]:
        other = _look(rng)
    return [look] * int(rng.integers(2, 4)) + [other]


def _adjacent_cells(rng: np.random.Generator) -> list[int]:
    pairs = [(0, 1), (2, 3), (0, 2), (1, 3)]
    pair = list(pairs[int(rng.integers(len(pairs)))])
    return pair if rng.random() < 0.5 else pair[::-1]


def _look(rng: np.random.Generator) -> tuple[str, str, str]:
    return _pick(SHAPES, rng), _pick(tuple(COLORS), rng), _pick(SIZES, rng)


def _pick(options: Iterable[str], rng: np.random.Generator) -> str:
    listed = tuple(options)
    return listed[int(rng.integers(len(listed)))]
