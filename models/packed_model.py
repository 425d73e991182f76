"""What models answer alike in all families whose rows are packed trees.

Shapes: B pictures, C choices of a question.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.nn.pairs import PackedPairs
from models.protocol import (
    BranchLogps,
    Modality,
    PairBatch,
    Questions,
    Seen,
    TextSampling,
)
from models.samplers.reading import Reader


class PackedModel(ABC):
    """The reading half of a `models.protocol.UnifiedModel`, and its pairs."""

    reader: Reader

    @property
    @abstractmethod
    def pair_module(self) -> nn.Module:
        """The module that training wraps; shares the network's weights."""

    @abstractmethod
    def pack_pairs(self, batch: PairBatch, modality: Modality) -> PackedPairs:
        """Input of `pair_module` for one modality of a batch of pairs, on the model's device."""

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.reader.network.device

    def caption(
        self, seen: Seen, samplings: Sequence[TextSampling], seeds: Sequence[int]
    ) -> list[list[str]]:
        """One caption of each image for each sampling."""
        return self.reader.caption(seen, samplings, seeds)

    def answer(self, seen: Seen, questions: Questions) -> list[list[npt.NDArray[np.float64]]]:
        """Probabilities over the choices of each question about each image."""
        return self.reader.answer(seen, questions)

    def reply(self, seen: Seen, questions: Questions) -> list[list[str]]:
        """Greedily decoded reply to each question about each image."""
        return self.reader.reply(seen, questions)

    def pair_logps(self, batch: PairBatch, modality: Modality) -> BranchLogps:
        """Log-probabilities of one modality of a batch of pairs, with gradient where enabled."""
        logps: BranchLogps = self.pair_module(self.pack_pairs(batch, modality))
        return logps
