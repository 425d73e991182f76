"""Stage `train`: Pair-DPO from one checkpoint to the next.

Reads checkpoint, pairs and reference log-probabilities; writes the model folder `model/` and
`metrics.jsonl`, one line a step. A killed run continues from its last saved state and ends with
the same weights. Under torchrun all processes run this module and share each batch; the first alone
shows, writes and publishes.
"""

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import load_file, save_file

from core.command import stage_command
from core.config import Training
from core.draft import SCRATCH, Draft
from core.errors import UserError
from core.stage import Stage, StageContext, run_stage
from data.tables import read_table
from models.base import UnifiedModel
from models.families import load_model, use_threads
from models.pair_data import join_reference, open_pairs
from models.pair_trainer import PairTrainer
from models.preference import active_modalities
from models.processes import connected, make_accelerator, process_device

METRICS = "metrics.jsonl"
WINDOW = 20  # steps that alarms and the figures of the manifest are averaged over
REFERENCE_COLUMNS = ["record_id", "branch", "side", "mask_seed", "logp"]

Metrics = list[dict[str, float]]


def run(context: StageContext) -> Mapping[str, object]:
    """Train, then publish the model."""
    config, training = context.config, context.config.training
    use_threads(config.runtime.threads)
    device = process_device(config.runtime.device, context.peers)
    accelerator = make_accelerator(device, context.peers)
    context.logger.info("process 1 of %d, on %s", context.peers.num, device)
    folder = context.input("checkpoint").path("model")
    model = load_model(config.model.family, folder, device)
    paths = context.input("pairs").parts()
    batch_size = config.runtime.batch_records
    with open_pairs(paths, model, batch_size, context.progress) as rows:
        stored = read_table(context.input("reference").parts(), "ref_logps", REFERENCE_COLUMNS)
        reference = join_reference(stored, rows, config.seed, training.epochs)
        trainer = PairTrainer(
            model, accelerator, rows, reference, training, config.seed, context.peers
        )
        if trainer.warmup_steps < training.warmup_steps:
            context.logger.warning(
                "training.warmup_steps = %d would take more than half of the %d steps; warming "
                "up for %d", training.warmup_steps, trainer.num_steps, trainer.warmup_steps,
            )  # fmt: skip
        metrics, seconds = _fit(context, trainer)
    if context.peers.first:
        _write_model(model, context.draft)
        with context.draft.write(METRICS) as path:
            path.write_text("".join(json.dumps(row) + "\n" for row in metrics), encoding="utf-8")
    return {
        "pairs": len(rows),
        "steps": trainer.num_steps,
        "warmup_steps": trainer.warmup_steps,
        "seconds_per_step": round(seconds, 4),
        **_last_means(metrics),
    }


TRAIN = Stage(
    "train",
    1,
    ("seed", "model.family", "training"),
    ("checkpoint", "pairs", "reference"),
    run,
)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The metrics of each step from a file named METRICS."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _fit(context: StageContext, trainer: PairTrainer) -> tuple[Metrics, float]:
    """All steps that are left, and the seconds each of them took."""
    metrics = _resume(context, trainer)
    # Those of one process, since all must meet to save.
    save_every = context.peers.once(lambda: context.config.runtime.save_every_steps)
    first, started = len(metrics), time.monotonic()
    with context.progress("train", trainer.num_steps) as bar:
        for row in metrics:
            bar.values(row)
        bar.update(first)
        for step in range(first, trainer.num_steps):
            metrics.append(trainer.step(step))
            bar.values(metrics[-1])
            _check_winners(metrics, context.config.training, trainer.num_steps)
            bar.update()
            done = step + 1
            if done % save_every == 0 and done < trainer.num_steps:
                context.peers.once(lambda: _save(context.draft, trainer, metrics))
    return metrics, (time.monotonic() - started) / max(1, trainer.num_steps - first)


def _save(draft: Draft, trainer: PairTrainer, metrics: Metrics) -> None:
    """Write the state after the last of `metrics` and drop older ones."""
    name = f"{SCRATCH}step-{len(metrics):06d}"
    older = draft.names(SCRATCH)
    with draft.write(f"{name}.safetensors") as path:
        save_file(trainer.state(), path)
    # Written last: a state counts only with its JSON.
    with draft.write(f"{name}.json") as path:
        path.write_text(json.dumps({"step": len(metrics), "metrics": metrics}), encoding="utf-8")
    for part in older:
        if not part.startswith(name):
            draft.discard(part)


def _resume(context: StageContext, trainer: PairTrainer) -> Metrics:
    """Restore the newest complete state; the metrics of the steps done."""
    draft = context.draft
    # One process chooses, and none saves or drops a state before all have read this one.
    name = context.peers.once(lambda: _newest_state(draft))
    if name is None:
        return []
    saved = json.loads(draft.path(f"{name}.json").read_text(encoding="utf-8"))
    trainer.restore(load_file(draft.path(f"{name}.safetensors")))
    context.logger.info("continuing after step %d", saved["step"])
    metrics: Metrics = saved["metrics"]
    return metrics


def _newest_state(draft: Draft) -> str | None:
    names = draft.names(SCRATCH)
    for name in reversed(names):
        state = name.removesuffix(".json")
        if name.endswith(".json") and f"{state}.safetensors" in names:
            return state
    return None


def _check_winners(metrics: Metrics, training: Training, num_steps: int) -> None:
    """Stop when winners have become unlikely: preference alone does not keep them likely."""
    window = metrics[-WINDOW:]
    if len(window) < min(WINDOW, num_steps):
        return
    for modality in active_modalities(training):
        mean = sum(row[f"{modality}/logratios/chosen"] for row in window) / len(window)
        if mean < -training.collapse_nats:
            raise UserError(
                f"training stopped at step {len(metrics)} of {num_steps}: {modality} winners lost "
                f"{-mean:.3f} nats a token against the reference (mean of {len(window)} steps), "
                f"more than training.collapse_nats = {training.collapse_nats}; lower "
                f"training.{modality}.learning_rate, raise training.{modality}.beta or "
                f"training.{modality}.nll_weight, or allow more collapse_nats"
            )


def _last_means(metrics: Metrics) -> dict[str, float]:
    """Each metric averaged over the last steps."""
    window: Sequence[Mapping[str, float]] = metrics[-WINDOW:]
    names = [name for name in window[-1] if name not in ("step", "epoch")]
    return {name: sum(row[name] for row in window) / len(window) for name in names}


def _write_model(model: UnifiedModel, draft: Draft) -> None:
    with TemporaryDirectory(prefix="hermesflow-") as scratch:
        model.save(scratch)
        for file in sorted(path for path in Path(scratch).rglob("*") if path.is_file()):
            with draft.write(f"model/{file.relative_to(scratch).as_posix()}") as path:
                shutil.move(file, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, in one process or in each of several that torchrun has started."""
    with connected() as peers:
        run_together = partial(run_stage, peers=peers)
        return stage_command({TRAIN.name: TRAIN}, arguments, run_together, peers)


if __name__ == "__main__":
    sys.exit(main())
