"""Where an interrupted pre-training goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch


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
        self._path.parent.mkdir(parents=True, exist_ok=True)
        written = self._path.with_suffix(".tmp")
        state = {
            "step": step,
            "parts": [part.state_dict() for part in self._parts],
            # Numbers of 128 bits, which are text in JSON and nothing that torch stores.
            "rng": json.dumps(self._rng.bit_generator.state),
            "torch": torch.get_rng_state(),
        }
        torch.save(state, written)
        written.replace(self._path)

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
