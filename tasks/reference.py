"""Stage `reference`: log-probabilities of every pair under the frozen checkpoint.

Computed once, for all image masks that training will draw; `part-*.parquet` of table `ref_logps`.
"""

import sys
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch

from core.artifact import part_name
from core.command import stage_command
from core.stage import Stage, StageContext
from data.schemas import arrow_schema
from data.tables import TableWriter, count_rows, iter_batches
from models.base import BranchLogps, Modality, UnifiedModel
from models.batches import Batches
from models.families import autocast, load_model, use_threads
from models.pair_data import COLUMNS, NO_MASK, SIDES, PairRows, encode_pairs


class _Reference:
    """Turns pairs into rows of the table."""

    def __init__(self, context: StageContext) -> None:
        config = context.config
        folder = context.input("checkpoint").path("model")
        # As in training: float32 weights, multiplied in the precision.
        self._model: UnifiedModel = load_model(config.model.family, folder, config.runtime.device)
        self._device, self._precision = config.runtime.device, config.model.precision
        self._batches = Batches(
            config.runtime.batch_records,
            "runtime.batch_records",
            f"lower training.masks_per_pair = {config.training.masks_per_pair}",
        )
        self._masking = config.seed, config.training.masks_per_pair
        self._epochs = config.training.epochs

    def write(self, pairs: pa.Table, writer: TableWriter) -> None:
        """Add the log-probabilities of these pairs."""
        rows = encode_pairs(pairs, self._model, self._batches)

        def work(first: int, last: int) -> pa.Table:
            rows_B = np.arange(first, last)
            images = (self._logps(rows, rows_B, "image", epoch) for epoch in range(self._epochs))
            return pa.concat_tables([self._logps(rows, rows_B, "caption", 0), *images])

        for logps in self._batches.map(len(rows), work):
            writer.write(logps)

    def _logps(
        self, rows: PairRows, rows_B: np.ndarray, modality: Modality, epoch: int
    ) -> pa.Table:
        batch = rows.batch(rows_B, epoch, self._masking)
        with torch.inference_mode(), autocast(self._device, self._precision):
            logps: BranchLogps = self._model.pair_logps(batch, modality)
        size = len(rows_B)
        seeds = batch.mask_seeds if modality == "image" else [NO_MASK] * size
        both_2B = torch.stack([logps.chosen_logps_B, logps.rejected_logps_B]).double().cpu()
        tokens_2B = torch.stack([logps.chosen_tokens_B, logps.rejected_tokens_B]).double().cpu()
        columns = {
            "record_id": rows.text["record_id"].take(rows_B).to_pylist() * 2,
            "branch": [modality] * (2 * size),
            "side": [SIDES[0]] * size + [SIDES[1]] * size,
            "mask_seed": [*seeds, *seeds],
            "logp": both_2B.flatten().numpy(),
            "num_tokens": tokens_2B.flatten().numpy(),
        }
        return pa.table(columns, schema=arrow_schema("ref_logps"))


def run(context: StageContext) -> Mapping[str, object]:
    """Write a part for each batch of pairs that has none yet."""
    use_threads(context.config.runtime.threads)
    reference = _Reference(context)
    draft, paths = context.draft, context.input("pairs").parts()
    num_pairs = count_rows(paths)
    with context.progress("reference", num_pairs) as bar:
        for number, pairs in enumerate(iter_batches(paths, "pairs", COLUMNS)):
            name = part_name(number)
            if not draft.has(name):
                with draft.write(name) as path, TableWriter(path, "ref_logps") as writer:
                    reference.write(pairs, writer)
            bar.update(pairs.num_rows)
    rows = count_rows(draft.path(name) for name in draft.names("part-"))
    return {"pairs": num_pairs, "rows": rows}


REFERENCE = Stage(
    "reference",
    1,
    ("seed", "model.family", "model.precision", "training.masks_per_pair", "training.epochs"),
    ("checkpoint", "pairs"),
    run,
)

if __name__ == "__main__":
    sys.exit(stage_command({REFERENCE.name: REFERENCE}))
