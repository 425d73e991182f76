"""Training steps: both modalities of the same records in each.

Several processes share the rows of each batch, and each takes its rows some at a time. Every pair
weighs the same, so the gradient is that of the batch's mean however the rows are divided.

Shapes: B pairs of a batch, b pairs that are computed at once.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from core.config import Training
from core.errors import UserError
from models.batches import is_out_of_memory
from models.protocol import BranchLogps, Modality, UnifiedModel
from models.weight_files import listing
from models.weights import not_finite
from training.data import (
    Draws,
    Floats,
    Ints,
    PairRows,
    ReferenceLogps,
    batches_of_epoch,
    num_batches,
)
from training.objectives import (
    Signals,
    Term,
    active_modalities,
    knob,
    objective_loss,
    per_pair,
    redraw_loss,
    terms_of,
)
from training.optim import make_optimizer, rate_factor
from training.sharding import local, whole
from training.state import load_state, save_state

logger = logging.getLogger(__name__)


class Terms(nn.Module):
    """Modalities that meet in one term, in one forward: DDP counts on one for each backward."""

    def __init__(self, pair_module: nn.Module) -> None:
        super().__init__()
        self.pair_module = pair_module

    def forward(self, *packed: object) -> list[BranchLogps]:
        """One result for each modality."""
        return [self.pair_module(one) for one in packed]


class PairTrainer:
    """Trains a model in place; step k depends on the weights, the moments and k alone.

    At most `pairs_at_once` pairs are computed at once; gradients of a batch add up. Weights that
    are sharded (training/sharding.py) have been so before.
    """

    def __init__(
        self,
        model: UnifiedModel,
        accelerator: Accelerator,
        rows: PairRows,
        reference: ReferenceLogps | None,
        training: Training,
        seed: int,
        *,
        pairs_at_once: int,
        sharded: bool = False,
    ) -> None:
        if accelerator.num_processes > training.batch_size:
            raise UserError(
                f"{accelerator.num_processes} processes cannot share training.batch_size = "
                f"{training.batch_size} pairs per step; start fewer processes or raise the batch "
                "size"
            )
        self._model, self._accelerator = model, accelerator
        self._rows, self._reference = rows, reference
        self._training, self._seed, self._pairs_at_once = training, seed, pairs_at_once
        # Wraps `forward` in autocast and, where weights are whole in each process, in DDP. The
        # model lies on its device already; sharded weights sum their gradients by themselves.
        self._module: nn.Module = accelerator.prepare_model(
            Terms(model.pair_module), device_placement=False, evaluation_mode=sharded
        )
        self._optimizer = make_optimizer(
            model.pair_module, training.learning_rate, training.weight_decay
        )
        self._terms = terms_of(training)
        self._iteration = int(rows.text["iteration"][0].as_py())
        self._steps_per_epoch = num_batches(len(rows), training.batch_size)
        num_steps = training.epochs * self._steps_per_epoch
        self.num_steps = min(num_steps, training.max_steps or num_steps)
        self.warmup_steps = min(training.warmup_steps, self.num_steps // 2)

    def step(self, step: int, ends: bool = False) -> tuple[dict[str, float], bool]:
        """Do step `step`, counted from 0: metrics from before the weights move.

        `ends` is whether this process was asked to end; returned is whether any of them was.
        """
        while True:
            try:
                metrics, any_ends = self._compute(step, ends)
                break
            except (MemoryError, RuntimeError) as error:
                self._halve(error)
        self._check_finite(metrics, step)
        norm = self._accelerator.clip_grad_norm_(self._trained(), self._training.max_grad_norm)
        metrics["grad_norm"] = float(whole(norm))
        self._check_finite(metrics, step)
        training = self._training
        rate = training.learning_rate * training.iteration_decay ** (self._iteration - 1)
        rate *= rate_factor(step, self.num_steps, self.warmup_steps, training.schedule)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        epoch = step // self._steps_per_epoch
        numbers = {"step": float(step + 1), "epoch": float(epoch + 1)}
        return numbers | metrics | {"learning_rate": rate}, any_ends

    def _compute(self, step: int, ends: bool) -> tuple[dict[str, float], bool]:
        """Leave the batch's gradient with the weights; the batch's metrics."""
        epoch = step // self._steps_per_epoch
        parts = [(*part, terms) for part in self._parts(step, epoch) for terms in self._terms]
        sums: dict[str, Tensor] = {}
        self._optimizer.zero_grad()
        for number, (rows_b, weight_b, terms) in enumerate(parts, start=1):
            # DDP averages the gradients of all processes, once per step: behind the last part.
            later = number < len(parts)
            with self._accelerator.no_sync(self._module) if later else nullcontext():
                loss_b, metrics = self._loss(rows_b, epoch, terms)
                weights = torch.from_numpy(weight_b).to(loss_b)
                self._accelerator.backward((loss_b * weights).sum())
            for name, value_b in metrics.items():
                # In float64 and on the device, since reading a number waits for a GPU.
                total = (value_b.double() * weights.double()).sum()
                sums[name] = sums[name] + total if name in sums else total
        sums["ends"] = torch.full_like(sums["loss"], float(ends))
        mean = self._accelerator.reduce(torch.stack([*sums.values()]), reduction="mean")
        found = dict(zip(sums, mean.tolist(), strict=True))
        any_ends = found.pop("ends") > 0
        return per_pair(found), any_ends

    def _loss(
        self, rows_b: Ints, epoch: int, terms: list[Term]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics [b] of some pairs, over what meets in one term."""
        training, draws = self._training, Draws.of(self._seed, self._training)
        modalities: list[Modality] = [term for term in terms if term != "redraw"]
        if not modalities:
            redraws = self._rows.redraw_batch(rows_b, epoch, draws)
            [branch] = self._module(self._model.pack_redraws(redraws))
            return redraw_loss(branch, training)
        batch = self._rows.batch(rows_b, epoch, draws)
        packed = [self._model.pack_pairs(batch, modality) for modality in modalities]
        logps: dict[Modality, BranchLogps] = dict(
            zip(modalities, self._module(*packed), strict=True)
        )
        return objective_loss(logps, self._signals(rows_b, epoch, logps), training.objective)

    def _signals(self, rows_b: Ints, epoch: int, logps: Mapping[Modality, BranchLogps]) -> Signals:
        """What is known of some rows, beside their likelihoods and on their device."""

        def beside(modality: Modality, values: Floats) -> Tensor:
            like = logps[modality].chosen_logps_B
            return torch.from_numpy(values).to(like, non_blocking=True)

        stored, grouped = self._reference, self._rows.grouped
        reference = {m: beside(m, stored.take(m, epoch, rows_b)) for m in logps if stored}
        if grouped is None:
            if self._training.objective.learns_from == "pool":
                return Signals()
            scores = self._rows.win_scores
            return Signals(reference, {m: beside(m, scores[m][rows_b]) for m in logps})
        objective, likeness = self._training.objective, None
        if objective.name == "group_policy" and objective.weigh_alike:
            likeness = beside(next(iter(logps)), grouped.weights[rows_b])
        return Signals(
            reference,
            likeness=likeness,
            advantages={m: beside(m, grouped.advantages[m][rows_b]) for m in logps},
            shares={m: beside(m, grouped.shares[m][rows_b]) for m in logps},
        )

    def _parts(self, step: int, epoch: int) -> Iterator[tuple[Ints, Floats]]:
        """Rows [b] that this process computes at once, and the weight of each.

        All processes have equally many parts of equal size, as they meet in each. Where the rows
        do not divide evenly, a row that is there to fill a part has no weight.
        """
        order = batches_of_epoch(
            len(self._rows), self._training.batch_size, self._seed, self._iteration, epoch
        )
        batch_B = order[step % self._steps_per_epoch]
        num, rank = self._accelerator.num_processes, self._accelerator.process_index
        size = -(-len(batch_B) // num)
        mine = np.array_split(batch_B, num)[rank]
        rows = np.concatenate((mine, np.repeat(batch_B[:1], size - len(mine))))
        # Gradients become means over processes, so that this makes the mean of the batch.
        weights = (np.arange(size) < len(mine)) * num / len(batch_B)
        num_parts = -(-size // self._pairs_at_once)
        return zip(np.array_split(rows, num_parts), np.array_split(weights, num_parts), strict=True)

    def _halve(self, error: Exception) -> None:
        """Take half as many pairs at once after the device ran out of memory; else raise."""
        if not is_out_of_memory(error):
            raise error
        if self._accelerator.num_processes > 1 or self._pairs_at_once == 1:
            raise UserError(
                f"out of memory with {self._pairs_at_once} pairs at once "
                f"({str(error).partition(chr(10))[0]}); lower runtime.batch_pairs, set "
                "runtime.recompute: true, or train adapters (training.lora)"
            ) from error
        self._pairs_at_once = -(-self._pairs_at_once // 2)
        logger.warning(
            "out of memory, going on with %d pairs at once; set runtime.batch_pairs: %d",
            self._pairs_at_once, self._pairs_at_once,
        )  # fmt: skip

    def save(self, folder: Path) -> None:
        """Write weights and moments as far as this process holds them; all must call it."""
        save_state(folder, self._model.pair_module, self._optimizer)

    def restore(self, folder: Path) -> None:
        """Continue from what `save` of all processes of a run has written."""
        load_state(folder, self._model.pair_module, self._optimizer)

    def trained_weights(self) -> dict[str, Tensor]:
        """Trained weights by their names in the model's `pair_module`; whole, in main memory."""
        named = self._model.pair_module.named_parameters()
        return {name: whole(p.detach()).cpu() for name, p in named if p.requires_grad}

    def check_weights(self) -> None:
        """UserError if what this process holds of the trained weights is not finite.

        Losses are measured before the weights move, so nothing else sees the last step.
        """
        named = self._model.pair_module.named_parameters()
        trained = [(name, p) for name, p in named if p.requires_grad]
        bad = not_finite((name, local(weight.detach())) for name, weight in trained)
        if bad:
            raise UserError(
                f"training ended after {self.num_steps} steps with {len(bad)} of {len(trained)} "
                f"tensors that are not finite ({listing(bad)}), so there is no checkpoint; lower "
                f"training.learning_rate = {self._training.learning_rate}"
            )

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self._model.pair_module.parameters() if p.requires_grad]

    def _check_finite(self, metrics: Mapping[str, float], step: int) -> None:
        bad = next((name for name, value in metrics.items() if not math.isfinite(value)), None)
        if bad is None:
            return
        training = self._training
        betas = " or ".join(
            knob(training.objective, modality)
            for modality in active_modalities(training.objective)
            if modality in bad or "/" not in bad
        )
        raise UserError(
            f"training stopped at step {step + 1} of {self.num_steps}: {bad} is {metrics[bad]}; "
            f"lower training.learning_rate = {training.learning_rate} or {betas}, or raise "
            f"training.warmup_steps = {training.warmup_steps}"
        )
