"""Cases of what is decoded, of families whose pictures are drawn code by code.

Shapes: R rows, X codes of a picture, C codebook entries.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.parity.case import ABSOLUTE, EXACT, Case
from models.protocol import Autoregressive, TextSampling
from models.samplers.autoregressive import NextLogits, draw_codes, guided
from models.samplers.noise import GeneratorNoise


def same_bytes(name: str, got: Any, expected: Any, pixels: Any) -> Case:
    """Number of bytes that differ; at the edge of two, within the limit of `pixels`, both fit.

    Bytes are truncated, and processors differ in the last digit of the pixels.
    """
    low, high = (
        np.clip((pixels + error + 1) * 127.5, 0, 255).astype(np.uint8)
        for error in (-ABSOLUTE, ABSOLUTE)
    )
    return Case(name, float(((got != expected) & (got != low) & (got != high)).sum()), EXACT)


def text_sampling(run: Mapping[str, Any], most: int) -> TextSampling:
    """How a published text of at most so many tokens was sampled."""
    return TextSampling(run["temperature"], run.get("top_k") or None, most, run.get("top_p"))


def guided_logits(next_logits: NextLogits, num_codes: int, how: Autoregressive) -> Tensor:
    """Logits [X,R,C] that each code of a picture is drawn from, after guidance."""
    seen: list[Tensor] = []

    def recorded(last_R: Tensor | None) -> Tensor:
        found = next_logits(last_R)
        seen.append(guided(found, how.guidance))
        return found

    draw_codes(recorded, num_codes, how, GeneratorNoise(torch.Generator()))
    return torch.stack(seen)
