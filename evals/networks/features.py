"""Features of pictures by a network in a TorchScript file, such as the Inception of FID."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from core.errors import UserError


class FeatureNetwork:
    """A module that takes bytes [1, 3, H, W] and `return_features`, and gives [1, D].

    That is what NVIDIA publishes as inception-2015-12-05.pt; it resizes pictures itself.
    """

    def __init__(self, file: Path, device: str) -> None:
        try:
            with warnings.catch_warnings():
                # Deprecated, but the only form in which the network is published.
                warnings.filterwarnings("ignore", ".*torch.jit.load.*", DeprecationWarning)
                self._module: Any = torch.jit.load(file, map_location=device)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{file} is no TorchScript file ({error}); see --inception") from None
        self._module.eval()
        self._device = device

    @torch.inference_mode()
    def features(self, image: Image.Image) -> NDArray[np.float32]:
        """[D] of an RGB image."""
        pixels_HW3 = torch.from_numpy(np.array(image)).to(self._device)
        found = self._module(pixels_HW3.permute(2, 0, 1)[None], return_features=True)
        return np.asarray(found[0].float().cpu().numpy())
