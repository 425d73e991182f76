"""Training steps of Pair-DPO: both modalities of the same records in each.

Several processes share the rows of each batch, and each takes its rows some at a time. Some rows
give the gradient of their mean times their share of the batch, so the sum is the gradient of the
batch's mean: pairs meet in nothing but that mean. All processes then take the same step. A model on
a CPU computes the two halves of its rows at once (models/lanes.py), unless it is large.

Shapes: B pairs of a batch.
"""

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from core.config import Training
from core.errors import UserError
from core.peers import EndOfAllError, Peers
from models.base import BranchLogps, Modality, UnifiedModel
from models.lanes import at_once, parts
from models.optimizer import BranchOptimizer, lean_gradients, rate_factor, take_gradients
from models.pair_data import Ints, PairRows, ReferenceLogps, batches_of_epoch, num_batches
from models.preference import ReferenceBranch, active_modalities, branch_settings, pair_loss
from models.processes import sum_over_processes
from models.sharding import ShardedState, local, whole
from models.weight_files import listing
from models.weights import not_finite

Gradients = list[Tensor | None]
Rows = tuple[Ints, float]
"""Rows of a batch, and their share of it."""
Figures = tuple[float, Mapping[str, float]]
"""Share of a batch, and metrics of its rows."""
Unread = tuple[float, Mapping[str, Tensor]]
"""The same on the device."""
logger = logging.getLogger(__name__)

HALVED_WEIGHTS = 2**27
"""Of the largest model that a CPU trains on two halves of its rows at once, each of which has a
gradient of its own; of this one another half gigabyte."""


@dataclass(frozen=True)
class _Part:
    """What a process tells of its rows of a batch: metrics, and which weights have a gradient."""

    figures: Sequence[Figures]
    has_gradient: Mapping[Modality, list[bool]]


class _Lane:
    """The module of a thread; the weights of all are one, their gradients are not."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.weights = [p for p in module.parameters() if p.requires_grad]


class PairTrainer:
    """Trains a model in place; step k depends on the weights, the moments and k alone.

    At most `pairs_at_once` pairs of a batch are computed at once. The weights may be `sharded` over
    `peers`; those of the model that need a gradient are trained.
    """

    def __init__(
        self,
        model: UnifiedModel,
        accelerator: Accelerator,
        rows: PairRows,
        reference: ReferenceLogps,
        training: Training,
        seed: int,
        peers: Peers,
        *,
        pairs_at_once: int,
        sharded: bool = False,
    ) -> None:
        if peers.num > training.batch_size:
            raise UserError(
                f"{peers.num} processes cannot share training.batch_size = {training.batch_size} "
                "pairs a step; start fewer processes or raise the batch size"
            )
        self._model, self._accelerator, self._peers = model, accelerator, peers
        self._pairs_at_once, self._sharded = pairs_at_once, sharded
        # The model lies on its device already. Evaluation mode, since the gradients of the two
        # modalities are summed apart, which DistributedDataParallel cannot do.
        self._lanes = [
            _Lane(accelerator.prepare_model(module, device_placement=False, evaluation_mode=True))
            for module in _modules(model, pairs_at_once, sharded)
        ]
        self._module, self._weights = self._lanes[0].module, self._lanes[0].weights
        if not sharded:
            for lane in self._lanes:
                lean_gradients(lane.module, alone=peers.num == 1)
        self._rows, self._reference = rows, reference
        self._training, self._seed = training, seed
        self._iteration = int(rows.text["iteration"][0].as_py())
        self._decay = training.iteration_decay ** (self._iteration - 1)
        self._modalities = active_modalities(training)
        # Modalities whose losses meet in one term need their log-probabilities at the same time;
        # of others, the activations of one are gone before those of the next are there. Images
        # come first, whose rows are longer, so that those of captions find room in what they leave.
        joint = training.objective == "joint"
        self._terms = [self._modalities] if joint else [[m] for m in reversed(self._modalities)]
        # Which optimizer takes the gradient of a modality: its own, or that of the first for all.
        shared = training.optimizers == "shared"
        self._owners = {m: self._modalities[0] if shared else m for m in self._modalities}
        self._optimizers = {
            owner: BranchOptimizer(self._module, owner, training)
            for owner in dict.fromkeys(self._owners.values())
        }
        # Before the names of what is told of an optimizer.
        self._of = {owner: "" if shared else f"{owner}/" for owner in self._optimizers}
        self._epoch, self._order = -1, list[Ints]()
        self._steps_per_epoch = num_batches(len(rows), training.batch_size)
        num_steps = training.epochs * self._steps_per_epoch
        self.num_steps = min(num_steps, training.max_steps or num_steps)
        self.warmup_steps = min(training.warmup_steps, self.num_steps // 2)

    def step(self, step: int) -> dict[str, float]:
        """Do step `step`, counted from 0; its metrics, measured before the weights move."""
        epoch = step // self._steps_per_epoch
        rows_B = self._batches(epoch)[step % self._steps_per_epoch]
        gradients = self._no_gradients()
        computed = self._together(lambda: self._compute(rows_B, epoch, gradients))
        figures = [figure for part in computed for figure in part.figures]
        metrics = {"step": float(step + 1), "epoch": float(epoch + 1), **_mean_metrics(figures)}
        self._check_finite(metrics, step)
        for owner, optimizer in self._optimizers.items():
            if self._peers.num > 1 and not self._sharded:
                self._sum(gradients[owner], [part.has_gradient[owner] for part in computed])
            metrics[f"{self._of[owner]}grad_norm"] = float(optimizer.clip(gradients[owner]))
        self._check_finite(metrics, step)
        factor = self._decay * rate_factor(
            step, self.num_steps, self.warmup_steps, self._training.schedule
        )
        for owner, optimizer in self._optimizers.items():
            rate = optimizer.step(gradients[owner], factor)
            metrics[f"{self._of[owner]}learning_rate"] = rate
        return metrics

    def check_weights(self) -> None:
        """UserError if what this process holds of the trained weights is not finite.

        Losses are measured before the weights move, so nothing else sees the last step.
        """
        trained = self._trained()
        bad = not_finite((name, local(weight.detach())) for name, weight in trained)
        if bad:
            settings = [branch_settings(self._training, modality) for modality in self._modalities]
            rates = " and ".join(
                f"training.{modality}.learning_rate = {branch.learning_rate}"
                for modality, branch in zip(self._modalities, settings, strict=True)
            )
            raise UserError(
                f"training ended after {self.num_steps} steps with {len(bad)} of {len(trained)} "
                f"tensors that are not finite ({listing(bad)}), so there is no checkpoint; lower "
                f"{rates}"
            )

    def trained_weights(self) -> dict[str, Tensor]:
        """Trained weights by their names in the model's `pair_module`; whole, in main memory."""
        return {name: whole(weight.detach()).cpu() for name, weight in self._trained()}

    def state(self) -> dict[str, Tensor]:
        """Trained weights and moments by name; what this process holds of them."""
        state = {f"weights.{name}": local(weight.detach()) for name, weight in self._trained()}
        for optimizer in self._optimizers.values():
            state |= optimizer.state()
        return state

    @torch.no_grad()
    def restore(self, state: ShardedState) -> None:
        """Continue from what `state` gave in all processes of a run."""
        for name, weight in self._trained():
            state.fill(f"weights.{name}", weight)
        for optimizer in self._optimizers.values():
            optimizer.restore(state)

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self._module.named_parameters() if p.requires_grad]

    def _together(self, compute: Callable[[], _Part]) -> list[_Part]:
        """What `compute` gives in each process; what fails in one of them ends all."""
        if not self._sharded:
            return self._peers.gather(compute)
        # Here the others wait inside of torch for a process that fails, and cannot be told. Those
        # who have started them end them as soon as it is gone.
        try:
            part = compute()
        except Exception as error:
            logger.exception("process %d failed", self._peers.rank)
            raise EndOfAllError(f"process {self._peers.rank}: {error}") from error
        return self._peers.gather(lambda: part)

    def _batches(self, epoch: int) -> list[Ints]:
        if self._epoch != epoch:
            self._epoch = epoch
            self._order = batches_of_epoch(
                len(self._rows), self._training.batch_size, self._seed, self._iteration, epoch
            )
        return self._order

    def _no_gradients(self) -> dict[Modality, Gradients]:
        return {owner: [None] * len(self._weights) for owner in self._optimizers}

    def _compute(self, batch_B: Ints, epoch: int, gradients: dict[Modality, Gradients]) -> _Part:
        """This process's part of a batch; adds its share of the batch's `gradients`."""
        of_lanes = [gradients, *(self._no_gradients() for _ in self._lanes[1:])]

        def compute(number: int, rows: Rows) -> Unread:
            return self._add_gradients(rows, epoch, self._lanes[number], of_lanes[number])

        unread = [
            figure
            for chunk in self._chunks(batch_B)
            for figure in at_once(lambda given: compute(*given), list(enumerate(chunk)))
        ]
        for other in of_lanes[1:]:
            for owner, given in gradients.items():
                given[:] = map(added, given, other[owner])
        has_gradient = {m: [g is not None for g in given] for m, given in gradients.items()}
        return _Part(_read(unread), has_gradient)

    def _chunks(self, batch_B: Ints) -> list[list[Rows]]:
        """Rows that are computed at once here, those of each lane."""

        def share(rows_B: Ints) -> float:
            return len(rows_B) / len(batch_B)

        most = -(-len(batch_B) // self._peers.num)
        mine = np.array_split(batch_B, self._peers.num)[self._peers.rank]
        chunks = np.array_split(mine, -(-most // self._pairs_at_once))
        if self._sharded:
            # All must gather weights equally often, so those without rows compute some for nothing.
            return [[(rows_B if len(rows_B) else batch_B[:1], share(rows_B))] for rows_B in chunks]
        halves = [np.array_split(rows_B, len(self._lanes)) for rows_B in chunks if len(rows_B)]
        return [[(rows_B, share(rows_B)) for rows_B in chunk if len(rows_B)] for chunk in halves]

    def _add_gradients(
        self, rows: Rows, epoch: int, lane: _Lane, gradients: dict[Modality, Gradients]
    ) -> Unread:
        """Add the share of some rows times the gradient of their mean."""
        rows_B, share = rows
        batch = self._rows.batch(rows_B, epoch, (self._seed, self._training.masks_per_pair))
        metrics: dict[str, Tensor] = {}
        for modalities in self._terms:
            logps: dict[Modality, BranchLogps] = {}
            reference: dict[Modality, ReferenceBranch] = {}
            for modality in modalities:
                logps[modality] = lane.module(self._model.pack_pairs(batch, modality))
                stored_B2 = torch.from_numpy(self._reference.take(modality, epoch, rows_B))
                stored_B2 = stored_B2.to(logps[modality].chosen_logps_B, non_blocking=True)
                reference[modality] = ReferenceBranch(stored_B2[:, 0], stored_B2[:, 1])
            result = pair_loss(logps, reference, self._training)
            loss = result.metrics["loss"] + metrics.get("loss", 0.0)
            metrics = {**result.metrics, **metrics, "loss": loss}
            for modality in modalities:
                chosen_B, rejected_B = result.gradients[modality]
                self._backward(
                    logps[modality],
                    (share * chosen_B, share * rejected_B),
                    lane.weights,
                    gradients[self._owners[modality]],
                )
        return share, metrics

    def _sum(self, gradients: Gradients, has_gradient: Sequence[Sequence[bool]]) -> None:
        """Replace gradients by their sums over processes.

        A weight that has none in any process keeps none, so AdamW passes it over as ever.
        """
        for number, anywhere in enumerate(map(any, zip(*has_gradient, strict=True))):
            if anywhere and gradients[number] is None:
                gradients[number] = torch.zeros_like(self._weights[number])
        sum_over_processes([gradient for gradient in gradients if gradient is not None])

    def _backward(
        self,
        logps: BranchLogps,
        by_logps: tuple[Tensor, Tensor],
        weights: Sequence[nn.Parameter],
        gradients: Gradients,
    ) -> None:
        """Add to the weights' gradients that of one modality's log-probabilities."""
        chosen_B, rejected_B = by_logps
        # Its derivative by the weights is the chain rule's sum, and it is a scalar for accelerate.
        carrier = (logps.chosen_logps_B * chosen_B + logps.rejected_logps_B * rejected_B).sum()
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        self._accelerator.backward(carrier)
        gradients[:] = take_gradients(weights)

    def _check_finite(self, metrics: Mapping[str, float], step: int) -> None:
        for modality in self._modalities:
            for name, value in metrics.items():
                own = name == "grad_norm" or name.startswith(f"{modality}/")
                if own and not math.isfinite(value):
                    settings = branch_settings(self._training, modality)
                    raise UserError(
                        f"training stopped at step {step + 1} of {self.num_steps}: {name} is "
                        f"{value}; lower training.{modality}.learning_rate = "
                        f"{settings.learning_rate} or training.{modality}.beta = {settings.beta}, "
                        f"or raise training.warmup_steps = {self._training.warmup_steps}"
                    )


def _modules(model: UnifiedModel, pairs_at_once: int, sharded: bool) -> list[nn.Module]:
    """That of the model; on a CPU mostly a second that has the same weights."""
    module = model.pair_module
    size = sum(weight.numel() for weight in module.parameters())
    device = next(module.parameters()).device
    halved = len(parts(pairs_at_once, device)) > 1 and size <= HALVED_WEIGHTS
    if sharded or not halved:
        return [module]
    other = copy.deepcopy(module)
    for weight, shared in zip(other.parameters(), module.parameters(), strict=True):
        weight.data = shared.data
    return [module, other]


def added(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """The sum of two gradients, in the memory of the first, of those that are there."""
    if first is None or second is None:
        return second if first is None else first
    return (first + second).coalesce() if first.is_sparse else first.add_(second)


def _read(figures: Sequence[Unread]) -> list[Figures]:
    """Numbers in one go, since each reading waits for a GPU."""
    return [
        (share, dict(zip(metrics, torch.stack([*metrics.values()]).tolist(), strict=True)))
        for share, metrics in figures
    ]


def _mean_metrics(figures: Sequence[Figures]) -> dict[str, float]:
    """Means over the rows of all parts."""
    (share, first), *others = [figure for figure in figures if figure[0]]
    return {
        name: sum((share * metrics[name] for share, metrics in others), start=share * first[name])
        for name in first
    }
