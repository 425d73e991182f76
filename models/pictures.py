"""Pictures to and from the numbers that image tokenizers compute with.

Shapes: B pictures, H W pixels.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from models.protocol import Drawn

Items = TypeVar("Items", Drawn, Sequence[Image.Image])


def chunks(items: Items, side: int, most: int) -> Iterator[Items]:
    """So many at once that they have at most `most` pixels, of which each needs much memory."""
    size = max(1, most // side**2)
    return (items[i : i + size] for i in range(0, len(items), size))


def middle_squares(images: Sequence[Image.Image], side: int, device: torch.device) -> Tensor:
    """Pixels [B,3,H,W] in [-1,1] of the middle squares of images of any size and mode."""
    squares = [ImageOps.fit(image.convert("RGB"), (side, side)) for image in images]
    pixels_BHW3 = torch.from_numpy(np.stack([np.asarray(square) for square in squares]))
    return pixels_BHW3.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def rgb_images(pixels_B3HW: Tensor) -> list[Image.Image]:
    """Pixels in [-1,1] are clipped, then truncated to 8 bits as published."""
    bytes_B3HW = ((pixels_B3HW + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    arrays = bytes_B3HW.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]
