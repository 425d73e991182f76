"""Stage `reference`: log-probabilities of every pair under the frozen checkpoint.

Its input `pairs` is what training learns from: pairs, or groups, whose samples it takes two by two.

Computed once; where the likelihood of an image is an estimate, for all draws of training. Writes
`part-*.parquet` of table `ref_logps`.
"""

import sys
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch

from core.artifact import part_name
from core.command import stage_command
from core.counts import keep_counts, kept_counts
from core.stage import Stage, StageContext
from data.schemas import arrow_schema
from data.tables import TableWriter, count_rows, iter_batches
from models.batches import Batches
from models.protocol import BranchLogps, Modality, UnifiedModel, count_cut
from models.registry import autocast, load_model, use_threads
from training.data import EXACT, Draws, PairRows
from training.encode import encode_rows, learnt_table


class _Reference:
    """Turns pairs into rows of the table."""

    def __init__(self, context: StageContext) -> None:
        config = context.config
        folder = context.input("checkpoint").path("model")
        self._batches = Batches.of_stage(
            "reference",
            config,
            folder,
            f"lower training.image_draws = {config.training.image_draws}",
        )
        # As in training: float32 weights, multiplied in the precision.
        self._model: UnifiedModel = load_model(config.model.family, folder, config.runtime.device)
        self._device, self._precision = config.runtime.device, config.model.precision
        self._draws = Draws.of(config.seed, config.training)
        # Exact likelihoods are the same in every epoch.
        self._epochs = 1 if self._model.exact_images else config.training.epochs

    def write(self, pairs: pa.Table, writer: TableWriter) -> None:
        """Add the log-probabilities of these pairs."""
        rows = encode_rows(pairs, self._model, self._batches)
        self.cut = self._count_cut(rows.text, paired=rows.grouped is None)

        def work(first: int, last: int) -> pa.Table:
            rows_B = np.arange(first, last)
            images = (self._logps(rows, rows_B, "image", epoch) for epoch in range(self._epochs))
            return pa.concat_tables([self._logps(rows, rows_B, "caption", 0), *images])

        for logps in self._batches.map(len(rows), work):
            writer.write(logps)

    def _count_cut(self, text: pa.Table, *, paired: bool) -> dict[str, int]:
        """Texts that are longer than the model sees, and pairs of captions that are one to it."""
        win, lose = (text[f"caption_{side}"].to_pylist() for side in ("win", "lose"))
        read = self._model.text_uses
        cut = count_cut(read, {"prompt": text["prompt"].to_pylist(), "caption": [*win, *lose]})
        pairs = zip(read(win, "caption"), read(lose, "caption"), strict=True)
        alike = sum(paired and a.cut and a.ids == b.ids for a, b in pairs)
        return cut | ({"pairs of captions that are the same then": alike} if alike else {})

    def _logps(
        self, rows: PairRows, rows_B: np.ndarray, modality: Modality, epoch: int
    ) -> pa.Table:
        batch = rows.batch(rows_B, epoch, self._draws)
        with torch.inference_mode(), autocast(self._device, self._precision):
            logps: BranchLogps = self._model.pair_logps(batch, modality)
        size = len(rows_B)
        drawn = modality == "image" and not self._model.exact_images
        seeds = batch.draw_seeds if drawn else [EXACT] * size
        both_2B = torch.stack([logps.chosen_logps_B, logps.rejected_logps_B]).double().cpu()
        tokens_2B = torch.stack([logps.chosen_tokens_B, logps.rejected_tokens_B]).double().cpu()
        columns = {
            "record_id": rows.text["record_id"].take(rows_B).to_pylist() * 2,
            "branch": [modality] * (2 * size),
            "side": rows.sides(modality)[rows_B].T.ravel(),
            "draw_seed": [*seeds, *seeds],
            "logp": both_2B.flatten().numpy(),
            "num_tokens": tokens_2B.flatten().numpy(),
        }
        table = pa.table(columns, schema=arrow_schema("ref_logps"))
        if rows.grouped is None:
            return table
        # Without what only fills a row.
        return table.filter(pa.array(rows.grouped.shares[modality][rows_B].T.ravel() > 0))


def run(context: StageContext) -> Mapping[str, object] | None:
    """Write a part for each batch of pairs that has none yet."""
    use_threads(context.config.runtime.threads)
    draft, shard, paths = context.draft, context.shard, context.input("pairs").parts()
    name_of_table, columns = learnt_table(paths)
    keys = ["record_id", "iteration"]
    sizes = [ids.num_rows for ids in iter_batches(paths, name_of_table, keys)]
    mine = [index for index in range(len(sizes)) if shard.takes(index)]
    reference = None
    with context.progress("reference", sum(sizes[index] for index in mine)) as bar:
        for index, pairs in enumerate(iter_batches(paths, name_of_table, columns)):
            if index not in mine:
                continue
            name = part_name(index)
            if not draft.has(name):
                # Only now, since a shard may have nothing to do.
                reference = reference or _Reference(context)
                with draft.write(name) as path, TableWriter(path, "ref_logps") as writer:
                    reference.write(pairs, writer)
                    keep_counts(draft, "cut", name, reference.cut)
            bar.update(pairs.num_rows)
    names = [part_name(index) for index in range(len(sizes))]
    if not draft.has_all(names):
        return None
    rows = count_rows(map(draft.path, names))
    return {"pairs": sum(sizes), "rows": rows, **kept_counts(draft, "cut")}


REFERENCE = Stage(
    "reference",
    2,
    (
        "seed",
        "model.family",
        "model.precision",
        "training.image_draws",
        "training.prompt_dropout",
        "training.epochs",
    ),
    ("checkpoint", "pairs"),
    run,
    sharded=True,
    retention="intermediate",
)

if __name__ == "__main__":
    sys.exit(stage_command({REFERENCE.name: REFERENCE}))
