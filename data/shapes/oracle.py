"""The exact pixel oracle: reads any picture of the right size back into a scene.

It reads every quarter of a cell by itself: which part of a shape, how large, of which colour. Four
quarters that agree and whose parts make a shape are an object; anything else that is not empty
counts as malformed. Shapes: B images, C cells, P pixels of a quarter, K templates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import UserError
from data.shapes.questions import answer
from data.shapes.render import BACKGROUND, CELL, HALVES, PARTS, part_mask
from data.shapes.scene import COLORS, GRID, SIZES, Object, Scene

MIN_AREA = 4  # Pixels; less than half of the smallest quarter is decoder noise, not an object.
MIN_IOU = 0.85  # Different templates have 0.81 in common at most.
MIN_PURITY = 0.85  # Share of foreground pixels that agree on the colour.
EMPTY, UNKNOWN = -1, -2
Numbers = NDArray[np.int64]


def read(images: NDArray[np.uint8]) -> list[Scene]:
    """Scenes of images [B, H, W, 3]; unknown or mixed objects are counted as malformed.

    UserError for images of another size than the world's.
    """
    side = GRID * CELL
    if images.shape[1:3] != (side, side):
        raise UserError(
            f"the pixel oracle reads pictures of {side} x {side} pixels, but the model draws "
            f"{images.shape[2]} x {images.shape[1]}; set evaluation.judge: reader, or take a model "
            "of the shapes world"
        )
    look_C4, color_C4 = _read_quarters(_quarters(images))
    shapes = {parts: shape for shape, parts in HALVES.items()}
    colors, cells = list(COLORS), GRID * GRID
    scenes = []
    for first in range(0, len(look_C4), cells):
        objects, malformed = [], 0
        for cell in range(cells):
            looks, tints = look_C4[first + cell], color_C4[first + cell]
            if (looks == EMPTY).all():
                continue
            shape, size = _shape(looks, shapes)
            if shape is None or len(set(tints)) > 1:
                malformed += 1
            else:
                objects.append(Object(cell, shape, colors[tints[0]], size))
        scenes.append(Scene(tuple(objects), malformed))
    return scenes


def _shape(looks_4: Numbers, shapes: Mapping[tuple[str, str], str]) -> tuple[str | None, str]:
    """Shape and size of four quarters in reading order; None if they make no shape."""
    if (looks_4 < 0).any() or looks_4[0] != looks_4[1] or looks_4[2] != looks_4[3]:
        return None, ""
    (upper, size), (lower, other) = (_looks()[looks_4[i]] for i in (0, 2))
    return (shapes.get((upper, lower)) if size == other else None), size


def _quarters(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels [C, 4, P, 3] of the quarters of each cell, mirrored into the upper left one."""
    half = CELL // 2
    cut = images.reshape(len(images), GRID, 2, half, GRID, 2, half, 3).transpose(
        0, 1, 4, 2, 5, 3, 6, 7
    )
    cut = cut.reshape(-1, 2, 2, half, half, 3)
    turned = np.stack(
        [cut[:, y, x, :: 1 - 2 * y, :: 1 - 2 * x] for y in (0, 1) for x in (0, 1)], axis=1
    )
    return turned.reshape(-1, 4, half * half, 3)


def _read_quarters(pixels_C4P: NDArray[np.uint8]) -> tuple[Numbers, Numbers]:
    """Index of the template (EMPTY, UNKNOWN) and of the colour of each quarter, both [C, 4]."""
    color_QP = _nearest_color(pixels_C4P.reshape(-1, *pixels_C4P.shape[2:]))
    templates = _templates()
    foreground_QP = color_QP > 0
    area_Q = foreground_QP.sum(1)
    overlap_QK = foreground_QP.astype(np.float32) @ templates.T
    iou_QK = overlap_QK / (area_Q[:, None] + templates.sum(1) - overlap_QK)
    votes = np.stack([(color_QP == c + 1).sum(1) for c in range(len(COLORS))], 1)
    purity_Q = votes.max(1) / np.maximum(area_Q, 1)
    known_Q = (iou_QK.max(1) >= MIN_IOU) & (purity_Q >= MIN_PURITY)
    look_Q = np.where(known_Q, iou_QK.argmax(1), UNKNOWN)
    look_Q = np.where(area_Q < MIN_AREA, EMPTY, look_Q)
    return look_Q.reshape(-1, 4), votes.argmax(1).reshape(-1, 4)


def _nearest_color(pixels: NDArray[np.uint8]) -> Numbers:
    """Index of the nearest palette colour of each pixel; 0 is the background."""
    palette = np.array([BACKGROUND, *COLORS.values()], np.float32)
    # |a-b|^2 without |a|^2, which is the same for every palette entry.
    scores = -2 * pixels.astype(np.float32) @ palette.T + (palette**2).sum(1)
    return np.asarray(scores.argmin(-1))


@cache
def _looks() -> list[tuple[str, str]]:
    """Every (part, size), in the order of the templates."""
    return [(part, size) for part in PARTS for size in SIZES]


@cache
def _templates() -> NDArray[np.float32]:
    """Pixels [K, P] of the upper left quarter of every look."""
    half = CELL // 2
    return np.stack([part_mask(*look)[:half, :half].ravel() for look in _looks()]).astype(
        np.float32
    )


def answer_images(
    images: NDArray[np.uint8], questions: Sequence[Sequence[Mapping[str, Any]]]
) -> list[list[str | None]]:
    """True answers to the questions of each image [B, H, W, 3]; None where nothing is true."""
    return [
        [answer(row["question"], scene) for row in asked]
        for scene, asked in zip(read(images), questions, strict=True)
    ]
