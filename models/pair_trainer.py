"""Training steps of Pair-DPO: both modalities of the same records in each.

Several processes share the rows of each batch. A process gives the gradient of the mean over its
rows times their share of the batch, so the sum over processes is the gradient of the batch's mean:
pairs meet in nothing but that mean. All processes then take the same step.

Shapes: B pairs of a batch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from core.config import Training
from core.errors import UserError
from core.peers import Peers
from models.base import BranchLogps, Modality, UnifiedModel
from models.optimizer import BranchOptimizer, rate_factor
from models.pair_data import Ints, PairRows, ReferenceLogps, batches_of_epoch, num_batches
from models.preference import ReferenceBranch, active_modalities, branch_settings, pair_loss
from models.processes import sum_over_processes

Gradients = list[Tensor | None]


@dataclass(frozen=True)
class _Part:
    """What a process tells of its rows of a batch: metrics, and which weights have a gradient."""

    share: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    has_gradient: Mapping[Modality, list[bool]] = field(default_factory=dict)


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
        peers: Peers,
    ) -> None:
        if peers.num > training.batch_size:
            raise UserError(
                f"{peers.num} processes cannot share training.batch_size = {training.batch_size} "
                "pairs a step; start fewer processes or raise the batch size"
            )
        self._model, self._accelerator, self._peers = model, accelerator, peers
        # The model lies on its device already. Evaluation mode, since the gradients of the two
        # modalities are summed apart, which DistributedDataParallel cannot do.
        self._module: nn.Module = accelerator.prepare_model(
            model.pair_module, device_placement=False, evaluation_mode=True
        )
        self._weights = [p for p in self._module.parameters() if p.requires_grad]
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
        epoch = step // self._steps_per_epoch
        rows_B = self._batches(epoch)[step % self._steps_per_epoch]
        gradients: dict[Modality, Gradients] = {}
        # What may fail in one process alone stands within, since a sum waits for all.
        parts = self._peers.gather(lambda: self._compute(rows_B, epoch, gradients))
        metrics = {"step": float(step + 1), "epoch": float(epoch + 1), **_mean_metrics(parts)}
        self._check_finite(metrics, step)
        for modality in self._modalities:
            if self._peers.num > 1:
                self._sum(gradients[modality], [part.has_gradient[modality] for part in parts])
            norm = self._optimizers[modality].clip(gradients[modality])
            metrics[f"{modality}/grad_norm"] = float(norm)
        self._check_finite(metrics, step)
        factor = self._decay * rate_factor(
            step, self.num_steps, self.warmup_steps, self._training.schedule
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

    def _compute(self, batch_B: Ints, epoch: int, gradients: dict[Modality, Gradients]) -> _Part:
        """This process's part of a batch; fills in its share of the batch's `gradients`."""
        rows_B = np.array_split(batch_B, self._peers.num)[self._peers.rank]
        share = len(rows_B) / len(batch_B)
        if len(rows_B) == 0:
            nothing: Gradients = [None] * len(self._weights)
            gradients.update({modality: list(nothing) for modality in self._modalities})
            return _Part(share, {}, _has_gradient(gradients))
        training = self._training
        batch = self._rows.batch(rows_B, epoch, (self._seed, training.masks_per_pair))
        logps: dict[Modality, BranchLogps] = {}
        reference: dict[Modality, ReferenceBranch] = {}
        for modality in self._modalities:
            logps[modality] = self._module(self._model.pack_pairs(batch, modality))
            stored_B2 = torch.from_numpy(self._reference.take(modality, epoch, rows_B))
            stored_B2 = stored_B2.to(logps[modality].chosen_logps_B)
            reference[modality] = ReferenceBranch(stored_B2[:, 0], stored_B2[:, 1])
        result = pair_loss(logps, reference, training)
        for modality in self._modalities:
            chosen_B, rejected_B = result.gradients[modality]
            gradients[modality] = self._backward(
                logps[modality], share * chosen_B, share * rejected_B
            )
        return _Part(share, result.metrics, _has_gradient(gradients))

    def _sum(self, gradients: Gradients, has_gradient: Sequence[Sequence[bool]]) -> None:
        """Replace gradients by their sums over processes.

        A weight that has none in any process keeps none, so AdamW passes it over as ever.
        """
        for number, anywhere in enumerate(map(any, zip(*has_gradient, strict=True))):
            if anywhere and gradients[number] is None:
                gradients[number] = torch.zeros_like(self._weights[number])
        sum_over_processes([gradient for gradient in gradients if gradient is not None])

    def _backward(self, logps: BranchLogps, chosen_B: Tensor, rejected_B: Tensor) -> Gradients:
        """Gradient of the weights from that of one modality's log-probabilities."""
        # Its derivative by the weights is the chain rule's sum, and it is a scalar for accelerate.
        carrier = (logps.chosen_logps_B * chosen_B + logps.rejected_logps_B * rejected_B).sum()
        self._accelerator.backward(carrier)
        gradients: Gradients = []
        for parameter in self._weights:
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


def _has_gradient(gradients: Mapping[Modality, Gradients]) -> dict[Modality, list[bool]]:
    return {modality: [g is not None for g in given] for modality, given in gradients.items()}


def _mean_metrics(parts: Sequence[_Part]) -> dict[str, float]:
    """Means over the rows of all parts."""
    first, *others = [part for part in parts if part.metrics]
    return {
        name: sum(
            (part.share * part.metrics[name] for part in others),
            start=first.share * first.metrics[name],
        )
        for name in first.metrics
    }
