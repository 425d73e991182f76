"""Where an interrupted pre-training goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from core.files import put_in_place, writing_to


class Stateful(Protocol):
    """A module, an optimizer or a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """What it has come to."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take that up."""
        ...


class Snapshot:
    """Everything that the next steps depend on, in one file."""

    def __init__(self, path: Path | None, parts: Sequence[Any], rng: np.random.Generator) -> None:
        """Without a path nothing is kept."""
        self._path, self._rng = path, rng
        self._parts: Sequence[Stateful] = parts

    def save(self, step: int) -> None:
        """After so many steps."""
        if self._path is None:
            return
        state = {
            "step": step,
            "parts": [part.state_dict() for part in self._parts],
            # Numbers of 128 bits, which are text in JSON and nothing that torch stores.
            "rng": json.dumps(self._rng.bit_generator.state),
            "torch": torch.get_rng_state(),
        }
        _write(self._path, state)

    def load(self) -> int:
        """How many steps were done; the parts are as they were after them."""
        if self._path is None or not self._path.is_file():
            return 0
        state = torch.load(self._path, weights_only=True)
        for part, kept in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(kept)
        self._rng.bit_generator.state = json.loads(state["rng"])
        torch.set_rng_state(state["torch"])
        return int(state["step"])


def write_weights(path: Path, module: nn.Module) -> None:
    """Keep the weights of a part that is finished."""
    _write(path, module.state_dict())


def read_weights(path: Path, module: nn.Module) -> None:
    """Give a part the weights that were kept, for good."""
    module.load_state_dict(torch.load(path, weights_only=True))
    module.eval()


def _write(path: Path, state: Mapping[str, Any]) -> None:
    """A file that is there is whole."""
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(".tmp")
        torch.save(state, written)
        put_in_place(written, path)
