"""Scenes as pixels. Shapes: H W canvas sides, h w cell sides."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from data.shapes.scene import COLORS, GRID, SHAPES, Object, Scene

CELL = 16
CANVAS = CELL * GRID
BACKGROUND = (244, 243, 238)
_RADIUS = {"small": 4.0, "large": 6.5}


@cache
def mask(shape: str, size: str) -> NDArray[np.bool_]:
    """Pixels [h, w] of a shape in its cell."""
    centre = (CELL - 1) / 2
    y, x = np.mgrid[0:CELL, 0:CELL].astype(float)
    x, y, r = x - centre, y - centre, _RADIUS[size]
    distance = np.hypot(x, y)
    inside = {
        "circle": distance <= r,
        "ring": (distance <= r) & (distance > 0.55 * r),
        "square": np.maximum(np.abs(x), np.abs(y)) <= 0.88 * r,
        "cross": (np.minimum(np.abs(x), np.abs(y)) <= 0.3 * r) & (distance <= r + 0.5),
        "triangle": (y <= 0.8 * r) & (np.abs(x) <= (y + r) * 0.6),
    }
    return np.asarray(inside[shape])


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
    pictures must have seen some.
    """
    canvas = render(scene)
    victim = scene.objects[int(rng.integers(len(scene.objects)))]
    stranger = Object(
        victim.cell,
        str(rng.choice(SHAPES)),
        str(rng.choice(list(COLORS))),
        str(rng.choice(list(_RADIUS))),
    )
    half = CELL // 2
    patch = cell_pixels(stranger) if rng.random() < 0.7 else np.full((CELL, CELL, 3), BACKGROUND)
    quarters = rng.permutation(4)[: int(rng.integers(1, 3))]
    for quarter in quarters:
        y, x = int(quarter) // 2 * half, int(quarter) % 2 * half
        top, left = victim.row * CELL + y, victim.column * CELL + x
        canvas[top : top + half, left : left + half] = patch[y : y + half, x : x + half]
    return canvas
