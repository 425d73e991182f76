"""Scenes as pixels. Shapes: H W canvas sides, h w cell sides."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from data.shapes.scene import COLORS, GRID, SHAPES, Object, Scene

CELL = 16
CANVAS = CELL * GRID
BACKGROUND = (244, 243, 238)
RADIUS = {"small": 4.6, "large": 6.6}
PARTS = ("round", "square", "cut")
# The upper and the lower half of each shape. Of the nine combinations three are no shape.
HALVES = {
    "circle": ("round", "round"),
    "square": ("square", "square"),
    "diamond": ("cut", "cut"),
    "dome": ("round", "square"),
    "house": ("cut", "square"),
    "heart": ("round", "cut"),
}


@cache
def part_mask(part: str, size: str) -> NDArray[np.bool_]:
    """Pixels [h, w] of a shape in its cell, all four quarters of which are this part."""
    centre = (CELL - 1) / 2
    y, x = np.mgrid[0:CELL, 0:CELL].astype(float)
    x, y, r = np.abs(x - centre), np.abs(y - centre), RADIUS[size]
    inside = {"round": np.hypot(x, y) <= r, "square": np.maximum(x, y) <= r, "cut": x + y <= r}
    return np.asarray(inside[part])


@cache
def mask(shape: str, size: str) -> NDArray[np.bool_]:
    """Pixels [h, w] of a shape in its cell."""
    upper, lower = (part_mask(part, size) for part in HALVES[shape])
    return np.concatenate((upper[: CELL // 2], lower[CELL // 2 :]))


def cell_pixels(item: Object) -> NDArray[np.uint8]:
    """Cell [h, w, 3] with one object on the background."""
    pixels = np.empty((CELL, CELL, 3), np.uint8)
    pixels[:] = BACKGROUND
    pixels[mask(item.shape, item.size)] = COLORS[item.color]
    return pixels


def render(scene: Scene) -> NDArray[np.uint8]:
    """Canvas [H, W, 3] of a scene."""
    canvas = np.empty((CANVAS, CANVAS, 3), np.uint8)
    canvas[:] = BACKGROUND
    for item in scene.objects:
        top, left = item.row * CELL, item.column * CELL
        canvas[top : top + CELL, left : left + CELL] = cell_pixels(item)
    return canvas


def render_broken(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Canvas of a scene in which one object has quarters of another one or of the background.

    This is what a generator's mistakes look like; a model that has to recognise them in its own
    pictures must have seen some. Half of the strangers differ from the object in one attribute,
    and half of the quarters come from another corner, as when a generator misplaces a token.
    """
    canvas = render(scene)
    victim = scene.objects[int(rng.integers(len(scene.objects)))]
    half = CELL // 2
    roll = rng.random()
    if roll < 0.45:
        donor = cell_pixels(_stranger(victim, rng))
    elif roll < 0.8:
        donor = cell_pixels(victim)
    else:
        donor = np.full((CELL, CELL, 3), BACKGROUND, np.uint8)
    moved = roll < 0.8 and (roll > 0.45 or rng.random() < 0.5)
    for quarter in rng.permutation(4)[: int(rng.integers(1, 3))]:
        y, x = _corner(int(quarter))
        from_y, from_x = _corner(int(rng.integers(4)) if moved else int(quarter))
        top, left = victim.row * CELL + y, victim.column * CELL + x
        canvas[top : top + half, left : left + half] = donor[
            from_y : from_y + half, from_x : from_x + half
        ]
    return canvas


def _corner(quarter: int) -> tuple[int, int]:
    """First row and column of a quarter of a cell."""
    return quarter // 2 * (CELL // 2), quarter % 2 * (CELL // 2)


def _stranger(victim: Object, rng: np.random.Generator) -> Object:
    shape, color, size = (str(rng.choice(list(v))) for v in (SHAPES, COLORS, RADIUS))
    near_misses = (
        replace(victim, shape=shape),
        replace(victim, color=color),
        replace(victim, size=size),
    )
    if rng.random() < 0.5:
        return near_misses[int(rng.integers(3))]
    return Object(victim.cell, shape, color, size)
