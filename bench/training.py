"""A Pair-DPO step as training does it, on random pairs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from bench.synthetic import Data, Size
from models.families.showo.model import ShowoModel
from models.protocol import MODALITIES, BranchLogps, Modality
from models.registry import autocast
from training.objectives import Signals, preference_loss
from training.optim import make_optimizer

if TYPE_CHECKING:
    from core.config import PairDpo, Training


@dataclass(frozen=True)
class PublishedBranch:
    """The published settings of a modality."""

    beta: float = 0.2
    weight: float = 1.0
    nll_weight: float = 0.0
    kl_weight: float = 0.0
    length_normalized: bool = False


@dataclass(frozen=True)
class PublishedObjective:
    """What the loss reads of a config, whose parser may not be installed."""

    name: str = "pair_dpo"
    combine: str = "sum"
    caption: PublishedBranch = PublishedBranch()
    image: PublishedBranch = PublishedBranch()


@dataclass(frozen=True)
class PublishedTraining:
    """What a step reads of a config."""

    objective: PublishedObjective = PublishedObjective()
    learning_rate: float = 2e-5
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


class PairStep:
    """Both modalities of `size.pairs` pairs, then the optimizer; the reference is the start.

    The model's weights are float32; matrices are multiplied in `precision`.
    """

    def __init__(
        self, model: ShowoModel, size: Size, device: str, precision: str = "bfloat16"
    ) -> None:
        self._model, self._device, self._precision = model, device, precision
        self._training = cast("Training", PublishedTraining())
        self._objective = cast("PairDpo", PublishedObjective())
        self._module = model.pair_module
        self._weights = [p for p in self._module.parameters() if p.requires_grad]
        self._optimizer = make_optimizer(
            self._module, self._training.learning_rate, self._training.weight_decay
        )
        self._batch = Data(model.config).pairs(size.pairs)
        with torch.inference_mode():
            logps = {modality: self._logps(modality) for modality in MODALITIES}
        self._reference = {
            modality: torch.stack((one.chosen_logps_B, one.rejected_logps_B), dim=1)
            for modality, one in logps.items()
        }

    def __call__(self) -> None:
        """A whole step."""
        self._optimizer.zero_grad()
        for modality in MODALITIES:
            logps = {modality: self._logps(modality)}
            loss_B, _ = preference_loss(logps, Signals(self._reference), self._objective)
            loss_B.mean().backward()
        torch.nn.utils.clip_grad_norm_(self._weights, self._training.max_grad_norm)
        self._optimizer.step()

    @property
    def num_tokens(self) -> int:
        """Of the packed rows, without padding."""
        pad_id = self._model.tokenizer.special.pad
        packed = (self._model.pack_pairs(self._batch, modality).batch for modality in MODALITIES)
        return sum(int((batch.input_ids_BT != pad_id).sum()) for batch in packed)

    def _logps(self, modality: Modality) -> BranchLogps:
        packed = self._model.pack_pairs(self._batch, modality)
        with autocast(self._device, self._precision):
            logps: BranchLogps = self._module(packed)
        return logps
