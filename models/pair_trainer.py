"""Training steps of Pair-DPO: both modalities of the same records in each.

Shapes: B pairs of a batch.
"""

import math
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from core.config import Training
from core.errors import UserError
from models.base import BranchLogps, Modality, UnifiedModel
from models.optimizer import BranchOptimizer, rate_factor
from models.pair_data import Ints, PairRows, ReferenceLogps, batches_of_epoch, num_batches
from models.preference import ReferenceBranch, active_modalities, branch_settings, pair_loss

Gradients = list[Tensor | None]


def make_accelerator(device: str) -> Accelerator:
    """An accelerator for one process on `device`, whatever launcher or environment is around."""
    if device != "cpu":
        torch.cuda.set_device(torch.device(device).index or 0)
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
    if accelerator.num_processes != 1:
        raise UserError(
            f"stage train was started in {accelerator.num_processes} processes, but it trains in "
            "one; start it without torchrun or accelerate launch"
        )
    return accelerator


class PairTrainer:
    """Trains a model in place; step k depends on the weights, the moments and k alone."""

    def __init__(
        self,
        model: UnifiedModel,
        accelerator: Accelerator,
        rows: PairRows,
        reference: ReferenceLogps,
        training: Training,
        seed: int,
    ) -> None:
        self._model, self._accelerator = model, accelerator
        # The model lies on its device already.
        self._module: nn.Module = accelerator.prepare_model(
            model.pair_module, device_placement=False
        )
        self._rows, self._reference = rows, reference
        self._training, self._seed = training, seed
        self._iteration = int(rows.text["iteration"][0].as_py())
        self._decay = training.iteration_decay ** (self._iteration - 1)
        self._modalities = active_modalities(training)
        self._optimizers = {
            modality: BranchOptimizer(self._module, modality, training)
            for modality in self._modalities
        }
        self._epoch, self._order = -1, list[Ints]()
        self._steps_per_epoch = num_batches(len(rows), training.batch_size)
        self.num_steps = training.epochs * self._steps_per_epoch
        self.warmup_steps = min(training.warmup_steps, self.num_steps // 2)

    def step(self, step: int) -> dict[str, float]:
        """Do step `step`, counted from 0; its metrics, measured before the weights move."""
        training, epoch = self._training, step // self._steps_per_epoch
        rows_B = self._batches(epoch)[step % self._steps_per_epoch]
        batch = self._rows.batch(rows_B, epoch, (self._seed, training.masks_per_pair))
        logps: dict[Modality, BranchLogps] = {}
        reference: dict[Modality, ReferenceBranch] = {}
        for modality in self._modalities:
            logps[modality] = self._module(self._model.pack_pairs(batch, modality))
            stored_B2 = torch.from_numpy(self._reference.take(modality, epoch, rows_B))
            stored_B2 = stored_B2.to(logps[modality].chosen_logps_B)
            reference[modality] = ReferenceBranch(stored_B2[:, 0], stored_B2[:, 1])
        result = pair_loss(logps, reference, training)
        metrics = {"step": float(step + 1), "epoch": float(epoch + 1), **result.metrics}
        self._check_finite(metrics, step)
        gradients: dict[Modality, Gradients] = {}
        for modality in self._modalities:
            gradients[modality] = self._backward(logps[modality], *result.gradients[modality])
            norm = self._optimizers[modality].clip(gradients[modality])
            metrics[f"{modality}/grad_norm"] = float(norm)
        self._check_finite(metrics, step)
        factor = self._decay * rate_factor(
            step, self.num_steps, self.warmup_steps, training.schedule
        )
        for modality in self._modalities:
            rate = self._optimizers[modality].step(gradients[modality], factor)
            metrics[f"{modality}/learning_rate"] = rate
        return metrics

    def state(self) -> dict[str, Tensor]:
        """Weights and moments by name."""
        state = {f"weights.{name}": p.detach() for name, p in self._module.named_parameters()}
        for optimizer in self._optimizers.values():
            state |= optimizer.state()
        return state

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` gave."""
        for name, parameter in self._module.named_parameters():
            parameter.copy_(state[f"weights.{name}"])
        for optimizer in self._optimizers.values():
            optimizer.restore(state)

    def _batches(self, epoch: int) -> list[Ints]:
        if self._epoch != epoch:
            self._epoch = epoch
            self._order = batches_of_epoch(
                len(self._rows), self._training.batch_size, self._seed, self._iteration, epoch
            )
        return self._order

    def _backward(self, logps: BranchLogps, chosen_B: Tensor, rejected_B: Tensor) -> Gradients:
        """Gradient of the weights from that of one modality's log-probabilities."""
        # Its derivative by the weights is the chain rule's sum, and it is a scalar for accelerate.
        carrier = (logps.chosen_logps_B * chosen_B + logps.rejected_logps_B * rejected_B).sum()
        self._accelerator.backward(carrier)
        gradients: Gradients = []
        for parameter in self._module.parameters():
            if parameter.requires_grad:
                gradients.append(parameter.grad)
                parameter.grad = None
        return gradients

    def _check_finite(self, metrics: Mapping[str, float], step: int) -> None:
        for modality in self._modalities:
            for name, value in metrics.items():
                if name.startswith(f"{modality}/") and not math.isfinite(value):
                    settings = branch_settings(self._training, modality)
                    raise UserError(
                        f"training stopped at step {step + 1} of {self.num_steps}: {name} is "
                        f"{value}; lower training.{modality}.learning_rate = "
                        f"{settings.learning_rate} or training.{modality}.beta = {settings.beta}, "
                        f"or raise training.warmup_steps = {self._training.warmup_steps}"
                    )
