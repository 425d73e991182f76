"""Stage `train`: from one checkpoint to the next, by the objective of the config.

Reads checkpoint, pairs and, if the objective has a reference, its log-probabilities; writes the
model folder `model/`, with LoRA also `adapter/` (peft's format), and `metrics.jsonl`, one line per
step. A killed run continues from its last saved state and ends with the same weights. Under
torchrun all processes run this module and share each batch; the first alone shows and publishes,
and each writes its part of the states.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from core.artifact_writer import SCRATCH, ArtifactWriter
from core.command import stage_command
from core.config import Objective, Preference, Training
from core.errors import UserError
from core.interrupts import Terminated, held_back
from core.runtime import derive_seed
from core.stage import Stage, StageContext, run_stage
from data.tables import read_table, stored_table
from models.memory import available_bytes, check_memory
from models.protocol import UnifiedModel
from models.registry import family, load_model, train_vision, use_threads
from training.data import PairRows, ReferenceLogps, join_reference
from training.encode import Encoding, open_pairs
from training.objectives import active_modalities
from training.processes import connected, make_accelerator, process_device
from training.sharding import recompute, shard
from training.trainer import PairTrainer

if TYPE_CHECKING:
    from models.adapters import Adapters

METRICS = "metrics.jsonl"
WINDOW = 20  # steps that alarms and the figures of the manifest are averaged over
REFERENCE_COLUMNS = ["record_id", "branch", "side", "draw_seed", "logp"]

Metrics = list[dict[str, float]]


def run(context: StageContext) -> Mapping[str, object]:
    """Train, then publish the model."""
    config, training, runtime = context.config, context.config.training, context.config.runtime
    use_threads(runtime.threads)
    device = process_device(runtime.device, context.group)
    accelerator = make_accelerator(
        device,
        context.group,
        config.model.precision,
        shared_weights=family(config.model.family).shared_weights,
    )
    context.logger.info("process 1 of %d, on %s", context.group.size, device)
    _check_memory(context, device)
    model, adapters = _load(context, device)
    sharded = runtime.shard_weights and context.group.size > 1
    paths = context.input("pairs").parts()
    _check_table(paths, training.objective)
    encoding = Encoding.of(training, _iteration(context))
    with open_pairs(paths, model, runtime.batch_records, context.progress, encoding) as rows:
        # Only now: pictures are read by whole weights.
        if runtime.recompute:
            recompute(model.blocks)
        if sharded:
            shard(model.pair_module, model.blocks, device)
        _check_winners_are_good(rows, training.objective)
        reference = _reference(context, model, rows) if training.objective.uses_reference else None
        trainer = PairTrainer(
            model, accelerator, rows, reference, training, config.seed,
            pairs_at_once=runtime.batch_pairs, sharded=sharded,
        )  # fmt: skip
        if trainer.warmup_steps < training.warmup_steps:
            context.logger.warning(
                "training.warmup_steps = %d would take more than half of the %d steps; warming "
                "up for %d", training.warmup_steps, trainer.num_steps, trainer.warmup_steps,
            )  # fmt: skip
        metrics, seconds = _fit(context, trainer)
    if sharded:
        weights = trainer.trained_weights()
        if context.group.is_main_process:
            model, adapters = _load(context, "cpu")
            with torch.no_grad():
                for name, parameter in model.pair_module.named_parameters():
                    if name in weights:
                        parameter.copy_(weights[name])
    if context.group.is_main_process:
        _average(context, model)
        _write(model, adapters, context.draft)
        with context.draft.write(METRICS) as path:
            path.write_text("".join(json.dumps(row) + "\n" for row in metrics), encoding="utf-8")
    return {
        "pairs": len(rows),
        "iteration": int(rows.text["iteration"][0].as_py()),
        "steps": trainer.num_steps,
        "warmup_steps": trainer.warmup_steps,
        "seconds_per_step": round(seconds, 4),
        **_last_means(metrics),
    }


TRAIN = Stage(
    "train",
    4,
    ("seed", "model.family", "model.precision", "training"),
    ("checkpoint", "pairs", "reference"),
    run,
    distributed=True,
    retention="checkpoint",
)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The metrics of each step from a file named METRICS."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _check_memory(context: StageContext, device: str) -> None:
    """UserError in all processes if one of them cannot hold weights, gradients and moments."""
    folder = context.input("checkpoint").path("model")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device == "cpu" else 1
    available = available_bytes(device, here)
    context.group.gather(
        lambda: check_memory("train", context.config, folder, available, context.group.size)
    )


def _reference(context: StageContext, model: UnifiedModel, rows: PairRows) -> ReferenceLogps:
    """Log-probabilities of all rows under the checkpoint that training starts from."""
    stored = read_table(context.input("reference").parts(), "ref_logps", REFERENCE_COLUMNS)
    epochs = 0 if model.exact_images else context.config.training.epochs
    return join_reference(stored, rows, context.config.seed, epochs)


MAKERS = {"pairs": "what stage pair has made", "groups": "what stage group has made"}
MAKERS |= {"pool": "the pool"}


def _check_table(paths: Sequence[Path], objective: Objective) -> None:
    """UserError for rows of another kind than the objective learns from."""
    wanted = objective.learns_from
    found = stored_table(paths[0]) if paths else wanted
    if found != wanted:
        raise UserError(
            f"training.objective.name = {objective.name!r} learns from {wanted}, but the input "
            f"pairs has {found}; give {MAKERS[wanted]}"
        )


def _iteration(context: StageContext) -> int:
    """One more than that of the checkpoint, for records of a pool, which say none."""
    results = context.input("checkpoint").manifest.get("results", {})
    return int(results.get("iteration", 0)) + 1


def _check_winners_are_good(rows: PairRows, objective: Objective) -> None:
    """UserError if a modality is left without a winner."""
    for modality in active_modalities(objective) if objective.name == "best_of" else ():
        least, best = getattr(objective, modality).min_score, rows.win_scores[modality].max()
        if best < least:
            raise UserError(
                f"no {modality} is learnt from: the best of all winners has a score of {best:.3f}, "
                f"below training.objective.{modality}.min_score = {least}; lower it, or set the "
                "weight to 0"
            )


def _load(context: StageContext, device: str) -> tuple[UnifiedModel, "Adapters | None"]:
    """The model to be trained, in float32; with adapters, if they are what is trained."""
    config, lora = context.config, context.config.training.lora
    model = load_model(config.model.family, context.input("checkpoint").path("model"), device)
    if config.training.train_vision:
        train_vision(config.model.family, model)
    if lora is None:
        return model, None
    # Here, since the import takes seconds.
    from models.adapters import Adapters

    return model, Adapters(model, lora, derive_seed(context.seed, "adapters"))


def _fit(context: StageContext, trainer: PairTrainer) -> tuple[Metrics, float]:
    """All steps that are left, and the seconds each of them took."""
    metrics = _resume(context, trainer)
    # Those of one process, since all must meet to save.
    save_every = context.group.once(lambda: context.config.runtime.save_every_steps)
    first, started = len(metrics), time.monotonic()
    with context.progress("train", trainer.num_steps) as bar, held_back() as is_to_end:
        for row in metrics:
            bar.values(row)
        bar.update(first)
        for step in range(first, trainer.num_steps):
            row, ends = trainer.step(step, is_to_end())
            metrics.append(row)
            bar.values(row)
            _check_winners(metrics, context.config.training, trainer.num_steps)
            bar.update()
            done = step + 1
            if done < trainer.num_steps and (ends or done % save_every == 0):
                _save(context, trainer, metrics)
            if ends:
                context.logger.info("saved after step %d; the process is asked to end", done)
                break
    # Reached after a signal only by those processes that have not got one themselves.
    if len(metrics) < trainer.num_steps:
        raise Terminated
    context.group.gather(trainer.check_weights)
    return metrics, (time.monotonic() - started) / max(1, trainer.num_steps - first)


def _save(context: StageContext, trainer: PairTrainer, metrics: Metrics) -> None:
    """Write the state after the last of `metrics` and drop older ones."""
    draft, group = context.draft, context.group
    name = f"{SCRATCH}step-{len(metrics):06d}"
    # One folder per process: they may be on several machines.
    with TemporaryDirectory() as folder:
        trainer.save(Path(folder))
        files = sorted(path.name for path in Path(folder).iterdir())
        for file in files:
            with draft.write(f"{name}/{file}") as path:
                shutil.move(Path(folder, file), path)
    names = [file for of_process in group.gather(lambda: files) for file in of_process]

    def finish() -> None:
        # Written last: a state counts only with its JSON.
        with draft.write(f"{name}.json") as path:
            state = {"step": len(metrics), "files": names, "metrics": metrics}
            path.write_text(json.dumps(state), encoding="utf-8")
        for part in draft.names(SCRATCH):
            if not part.startswith(name):
                draft.discard(part)

    group.once(finish)


def _resume(context: StageContext, trainer: PairTrainer) -> Metrics:
    """Restore the newest complete state; the metrics of the steps done."""
    draft = context.draft
    # One process chooses, and none saves or drops a state before all have read this one. Its files
    # are there before its JSON, and dropped after it.
    ends = context.group.once(lambda: [n for n in draft.names(SCRATCH) if n.endswith(".json")])
    if not ends:
        return []
    name = ends[-1].removesuffix(".json")
    saved = json.loads(draft.path(ends[-1]).read_text(encoding="utf-8"))
    with TemporaryDirectory() as folder:
        for file in saved["files"]:
            Path(folder, file).symlink_to(draft.path(f"{name}/{file}").absolute())
        trainer.restore(Path(folder))
    context.logger.info("continuing after step %d", saved["step"])
    metrics: Metrics = saved["metrics"]
    return metrics


def _check_winners(metrics: Metrics, training: Training, num_steps: int) -> None:
    """Stop when winners have become unlikely: preference alone does not keep them likely."""
    window = metrics[-WINDOW:]
    if len(window) < min(WINDOW, num_steps):
        return
    objective = training.objective
    if not isinstance(objective, Preference):
        return
    for modality in active_modalities(objective):
        mean = _mean(window, f"{modality}/logratios/chosen")
        if mean < -objective.collapse_nats:
            raise UserError(
                f"training stopped at step {len(metrics)} of {num_steps}: {modality} winners lost "
                f"{-mean:.3f} nats per token against the reference (mean of {len(window)} steps), "
                f"more than training.objective.collapse_nats = {objective.collapse_nats}; lower "
                f"training.learning_rate, raise training.objective.{modality}.beta or "
                f"training.objective.{modality}.nll_weight, or allow more collapse_nats"
            )


def _last_means(metrics: Metrics) -> dict[str, float]:
    """Each metric averaged over the last steps."""
    window: Sequence[Mapping[str, float]] = metrics[-WINDOW:]
    names = [name for name in window[-1] if name not in ("step", "epoch")]
    return {name: _mean(window, name) for name in names}


def _mean(window: Sequence[Mapping[str, float]], name: str) -> float:
    """Of a metric over steps; those of pairs by how many pairs a step has, 0 if there were none."""
    pairs = f"{name.partition('/')[0]}/pairs"
    weights = [1.0 if name == pairs else row.get(pairs, 1.0) for row in window]
    total = sum(w * row[name] for w, row in zip(weights, window, strict=True))
    return total / sum(weights) if sum(weights) else 0.0


def _average(context: StageContext, model: UnifiedModel) -> None:
    """Move the weights back towards those that training started from, as far as the config says.

    theta = start + average * (trained - start): WiSE-FT (arXiv 2109.01903, section 3).
    """
    average = context.config.training.average
    if average == 1:
        return
    start, _ = _load(context, "cpu")
    weights = dict(start.pair_module.named_parameters())
    with torch.no_grad():
        for name, parameter in model.pair_module.named_parameters():
            parameter.copy_(weights[name].to(parameter).lerp(parameter, average))


def _write(model: UnifiedModel, adapters: "Adapters | None", draft: ArtifactWriter) -> None:
    with draft.folder() as folder:
        if adapters is not None:
            adapters.save(folder / "adapter")
            adapters.merge()
        model.save_pretrained(folder / "model")
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            with draft.write(file.relative_to(folder).as_posix()) as path:
                shutil.move(file, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, in one process or in each of several that torchrun has started."""
    with connected() as group:
        run_together = partial(run_stage, group=group)
        return stage_command({TRAIN.name: TRAIN}, arguments, run_together, group)


if __name__ == "__main__":
    sys.exit(main())
