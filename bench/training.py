"""A Pair-DPO step as training does it, on random pairs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from bench.flops import Work, packed_work, training_flops
from bench.synthetic import Data, Size
from models.families.showo.model import ShowoModel
from models.protocol import MODALITIES, BranchLogps, Modality, PairBatch
from models.registry import autocast
from training.objectives import pair_loss
from training.optim import make_optimizer

if TYPE_CHECKING:
    from core.config import Training


@dataclass(frozen=True)
class PublishedBranch:
    """The published settings of a modality."""

    beta: float = 0.2
    weight: float = 1.0
    nll_weight: float = 0.0
    length_normalized: bool = False


@dataclass(frozen=True)
class PublishedTraining:
    """What the loss and the optimizer read of a config, whose parser may not be installed."""

    objective: str = "sum"
    caption: PublishedBranch = PublishedBranch()
    image: PublishedBranch = PublishedBranch()
    learning_rate: float = 2e-5
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class Lora:
    """Adapters as a config describes them."""

    rank: int = 16
    alpha: float = 32.0


class PairStep:
    """Both modalities of `size.pairs` pairs, `at_once` of them at a time, then the optimizer.

    The model's weights are float32; matrices are multiplied in `precision`.
    """

    def __init__(
        self,
        model: ShowoModel,
        size: Size,
        device: str,
        at_once: int,
        precision: str = "bfloat16",
    ) -> None:
        self._model, self._device, self._precision = model, device, precision
        self._training = cast("Training", PublishedTraining())
        self._module = model.pair_module
        self.weights = [p for p in self._module.parameters() if p.requires_grad]
        self._optimizer = make_optimizer(
            self._module, self._training.learning_rate, self._training.weight_decay
        )
        data = Data(model.config)
        counts = [min(at_once, size.pairs - i) for i in range(0, size.pairs, at_once)]
        self._batches = [data.pairs(count) for count in counts]
        self._shares = [count / size.pairs for count in counts]
        # The reference is the start, as in training.
        self._references = [self._reference(batch) for batch in self._batches]

    def __call__(self) -> None:
        """A whole step."""
        self._optimizer.zero_grad()
        for modality in MODALITIES:
            self._add_gradient(modality)
        torch.nn.utils.clip_grad_norm_(self.weights, self._training.max_grad_norm)
        self._optimizer.step()

    def work(self) -> Work:
        """Of the forward passes of a step."""
        pad_id = self._model.tokenizer.special.pad
        total = Work()
        for batch in self._batches:
            for modality in MODALITIES:
                packed = self._model.pack_pairs(batch, modality).batch.to("cpu")
                total += packed_work(self._model.config, packed, pad_id)
        return total

    def flops(self, lora: Lora | None) -> int:
        """Of a step, without optimizers."""
        return training_flops(self._model.config, self.work(), lora.rank if lora else None)

    def _add_gradient(self, modality: Modality) -> None:
        for batch, share, reference in zip(
            self._batches, self._shares, self._references, strict=True
        ):
            logps = self._logps(batch, modality)
            loss_B, _ = pair_loss(
                {modality: logps}, {modality: reference[modality]}, self._training
            )
            (share * loss_B.mean()).backward()

    def _logps(self, batch: PairBatch, modality: Modality) -> BranchLogps:
        packed = self._model.pack_pairs(batch, modality)
        with autocast(self._device, self._precision):
            logps: BranchLogps = self._module(packed)
        return logps

    @torch.inference_mode()
    def _reference(self, batch: PairBatch) -> dict[Modality, torch.Tensor]:
        found: dict[Modality, torch.Tensor] = {}
        for modality in MODALITIES:
            logps = self._logps(batch, modality)
            found[modality] = torch.stack((logps.chosen_logps_B, logps.rejected_logps_B), dim=1)
        return found
