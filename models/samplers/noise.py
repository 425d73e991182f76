"""Where the random numbers of decoding come from.

Decoding asks for them in a fixed order: text, one categorical draw a token; images, one
categorical and one uniform draw a step.

Shapes: R rows, N positions, C categories, S draws.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Noise(Protocol):
    """Source of the draws of one decoding run."""

    def categorical(self, probs_RNC: Tensor) -> Tensor:
        """One category [R,N] for each row and position; probabilities sum to 1."""
        ...

    def uniform(self, like_RN: Tensor) -> Tensor:
        """Uniform(0,1) numbers in the shape of `like_RN`."""
        ...


class GeneratorNoise:
    """All draws of a batch from one torch generator, exactly as the published implementation."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def categorical(self, probs_RNC: Tensor) -> Tensor:
        """Multinomial draws over the flattened rows and positions."""
        flat = probs_RNC.flatten(0, 1)
        return torch.multinomial(flat, 1, generator=self.generator).view(probs_RNC.shape[:2])

    def uniform(self, like_RN: Tensor) -> Tensor:
        """Uniform draws of the whole batch at once."""
        return torch.empty_like(like_RN).uniform_(generator=self.generator)


class ReplayNoise:
    """Given numbers: exponentials [S,R*N,C] for the categorical draws, uniforms [S,R,N]."""

    def __init__(self, exponential: Tensor, uniform: Tensor | None = None) -> None:
        self._exponential: Iterator[Tensor] = iter(exponential)
        self._uniform: Iterator[Tensor] = iter(() if uniform is None else uniform)

    def categorical(self, probs_RNC: Tensor) -> Tensor:
        """The category that wins the exponential race."""
        return (probs_RNC / next(self._exponential).view_as(probs_RNC)).argmax(dim=-1)

    def uniform(self, like_RN: Tensor) -> Tensor:
        """The next stored uniforms."""
        return next(self._uniform).view_as(like_RN)


class RecordNoise:
    """Draws of each record from its own seed, so that they do not depend on the batch around it.

    Every draw, categorical ones too (by inverse distribution function), takes one uniform number a
    position. They come from CPU generators and are equal on all devices.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        num_samples: int,
        num_draws: int,
        num_positions: int,
        device: torch.device,
    ) -> None:
        """Rows are the records in order, `num_samples` each; a further sample changes no other."""
        shape = (num_samples, num_draws, num_positions)
        draws = [torch.rand(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        self._draws: Iterator[Tensor] = iter(torch.cat(draws).transpose(0, 1).to(device))

    def categorical(self, probs_RNC: Tensor) -> Tensor:
        """Inverse distribution function of one uniform number a position."""
        cumulative_RNC = probs_RNC.cumsum(dim=-1)
        # A point below the sum lies in a category of the support, whatever was rounded.
        sum_RN1 = cumulative_RNC[:, :, -1:]
        below_RN1 = torch.nextafter(sum_RN1, torch.zeros_like(sum_RN1))
        point_RN1 = torch.minimum(next(self._draws)[:, :, None] * sum_RN1, below_RN1)
        return torch.searchsorted(cumulative_RNC, point_RN1, right=True)[:, :, 0]

    def uniform(self, like_RN: Tensor) -> Tensor:
        """The next uniform number of each position."""
        return next(self._draws).view_as(like_RN)
