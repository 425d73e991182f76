"""One comparison of a parity folder, and how its files are read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from core.errors import UserError

# SDPA and eager attention differ by up to 5e-6 in the logits of the tiny network, pixels by 1e-5.
ABSOLUTE = 5e-5
# Sums of some tens of float32 log-probabilities, and norms of gradients.
RELATIVE = 1e-5
EXACT = 0.0

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """One comparison: its largest error and the largest one allowed."""

    name: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the limit; NaN is not."""
        return self.error <= self.limit


def absolute(name: str, got: Any, expected: Any) -> Case:
    """Largest absolute difference."""
    return Case(name, float(np.abs(_float(got) - _float(expected)).max()), ABSOLUTE)


def relative(name: str, got: Any, expected: Any, limit: float = RELATIVE) -> Case:
    """Largest difference relative to the expected value of the same element."""
    wanted = _float(expected)
    return Case(name, float((np.abs(_float(got) - wanted) / np.abs(wanted)).max()), limit)


def scaled(name: str, got: Any, expected: Any, scale: float) -> Case:
    """Largest difference relative to what the values are made of."""
    return Case(name, float(np.abs(_float(got) - _float(expected)).max()) / scale, RELATIVE)


def exact(name: str, got: Any, expected: Any) -> Case:
    """Number of elements that differ."""
    wanted = _float(expected)
    values = _float(got)
    differing = values != wanted if values.shape == wanted.shape else np.ones(wanted.shape)
    return Case(name, float(differing.sum()), EXACT)


def _float(values: Any) -> npt.NDArray[np.float64]:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return array.astype(np.float64)


def existing(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path}: no such file; a parity folder needs it")
    return path


def arrays(path: Path) -> Arrays:
    with np.load(existing(path)) as stored:
        return {name: stored[name] for name in stored.files}
