"""What a parity folder holds, and the reference that its preferences were computed with."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.parity.case import arrays, existing


class PublishedNumbers:
    """Inputs, and what the published code made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = json.loads(existing(folder / "runs.json").read_text())
        self.inputs = arrays(folder / "inputs.npz")
        self.expected = arrays(folder / "expected.npz")

    def tensor(self, name: str) -> Tensor:
        """An input array as a tensor."""
        return torch.from_numpy(self.inputs[name])


def shifted(weights: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Weights of the frozen reference: a wave is added to those that are named, in float32."""
    moved = dict(weights)
    for index, name in enumerate(sorted(names)):
        weight = weights[name].float()
        wave = 0.05 * np.sin(0.37 * np.arange(weight.numel()) + index)
        moved[name] = weight + torch.from_numpy(wave.astype(np.float32)).view_as(weight)
    return moved
