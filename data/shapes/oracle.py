"""The exact pixel oracle: reads any picture of the right size back into a scene.

It knows every template the renderer can draw. A cell whose foreground fits no template well
enough, or is not of one colour, counts as malformed. Shapes: B images, P pixels of a cell,
K templates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.shapes.questions import answer
from data.shapes.render import BACKGROUND, CELL, mask
from data.shapes.scene import COLORS, GRID, SHAPES, SIZES, Object, Scene

MIN_AREA = 8  # Pixels; less than a fifth of the smallest shape is decoder noise, not an object.
MIN_IOU = 0.8  # A shape that lost a quarter scores 0.75.
MIN_PURITY = 0.85  # Share of foreground pixels that agree on the colour.


def read(images: NDArray[np.uint8]) -> list[Scene]:
    """Scenes of images [B, H, W, 3]; unknown or mixed objects are counted as malformed."""
    cells = (
        images.reshape(len(images), GRID, CELL, GRID, CELL, 3)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(-1, CELL * CELL, 3)
    )
    looks, templates = _templates()
    color_P = _nearest_color(cells)
    foreground_P = color_P > 0
    area = foreground_P.sum(1)
    overlap_K = foreground_P.astype(np.float32) @ templates.T
    iou_K = overlap_K / (area[:, None] + templates.sum(1) - overlap_K)
    best = iou_K.argmax(1)
    votes = np.stack([(color_P == c + 1).sum(1) for c in range(len(COLORS))], 1)
    purity = votes.max(1) / np.maximum(area, 1)
    known = (iou_K.max(1) >= MIN_IOU) & (purity >= MIN_PURITY)
    names = list(COLORS)
    scenes = []
    for first in range(0, len(cells), GRID * GRID):
        objects, malformed = [], 0
        for cell in range(GRID * GRID):
            i = first + cell
            if area[i] < MIN_AREA:
                continue
            if known[i]:
                shape, size = looks[best[i]]
                objects.append(Object(cell, shape, names[int(votes[i].argmax())], size))
            else:
                malformed += 1
        scenes.append(Scene(tuple(objects), malformed))
    return scenes


def _nearest_color(cells: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Index of the nearest palette colour of each pixel; 0 is the background."""
    palette = np.array([BACKGROUND, *COLORS.values()], np.float32)
    pixels = cells.astype(np.float32)
    # |a-b|^2 without |a|^2, which is the same for every palette entry.
    scores = -2 * pixels @ palette.T + (palette**2).sum(1)
    return np.asarray(scores.argmin(-1))


@cache
def _templates() -> tuple[list[tuple[str, str]], NDArray[np.float32]]:
    """Every (shape, size) and its pixels [K, P]."""
    looks = [(shape, size) for shape in SHAPES for size in SIZES]
    return looks, np.stack([mask(*look).ravel() for look in looks]).astype(np.float32)


def answer_images(
    images: NDArray[np.uint8], questions: Sequence[Sequence[Mapping[str, Any]]]
) -> list[list[str | None]]:
    """True answers to the questions of each image [B, H, W, 3]; None where nothing is true."""
    return [
        [answer(row["question"], scene) for row in asked]
        for scene, asked in zip(read(images), questions, strict=True)
    ]
