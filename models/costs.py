"""What the parts of a unified model cost, by its config.json alone.

FLOPs of a forward pass; a multiply-add counts two, as in torch.utils.flop_counter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Costs:
    """FLOPs of a model's parts, and how many positions of the language model a picture takes."""

    blocks: float
    """Of all blocks, for each position, without what attention computes between positions."""
    attention: float
    """For each position and each other one that it looks at."""
    text_head: float
    """For each position whose next token is looked at."""
    image_head: float
    """For each position whose code is looked at."""
    read_positions: int
    """That a picture takes where it is read."""
    drawn_positions: int
    """That a picture takes where it is drawn."""
    see: float
    """Of one picture, from pixels to what the language model reads."""
    decode: float
    """Of one picture, from codes to pixels."""
    pixels: int
    """Of a side of a picture."""
    parameters: float
    """Of the network, without image tokenizer."""


def transformer(
    *, layers: int, width: int, hidden: int, matrices: int, keys: int | None = None
) -> tuple[float, float]:
    """FLOPs of a stack of blocks: for each position, and for each pair of positions.

    `hidden` and `matrices` are those of the feed-forward part (3 matrices where it is gated);
    `keys` is the width of keys and values, if it is less than `width`.
    """
    parameters = 2 * width * width + 2 * width * (keys or width) + matrices * width * hidden
    return 2.0 * layers * parameters, 4.0 * layers * width


def counted(run: Callable[[], object]) -> float:
    """FLOPs of a module that was made, and runs, on the meta device: shapes alone."""
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        run()
    return float(counter.get_total_flops())
