"""Stage `fit`: whether the base can read this pool at all, on a sample of it, before any work.

Self-play on a pool that the model cannot read trains on noise. So the base answers questions about
some real pictures and describes them, and its tokenizer is asked what becomes of the texts.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.command import stage_command
from core.config import Config
from core.errors import UserError
from core.progress import progress
from core.stage import Stage, StageContext
from data.rows import spread_records
from data.shapes.records import make_records
from data.tables import parquet_files
from evals.fit import (
    FIT_COLUMNS,
    SAMPLE,
    find_misfits,
    measure_fit,
    refuse_misfits,
    show_fit,
)
from evals.networks.caption_scorer import encoder_files


def _body(context: StageContext) -> Mapping[str, object]:
    config = context.config
    records = spread_records(context.input("pool").parts(), FIT_COLUMNS, SAMPLE)
    folder = context.input("base").path("model")
    figures = measure_fit(config, folder, records, context.progress)
    context.logger.info("the base and this pool: %s", show_fit(figures))
    refuse_misfits(figures, config.scoring.require_fit, context.logger)
    return {**figures, "misfits": find_misfits(figures)}


def readability(config: Config) -> str:
    """What the base makes of a sample of the pool, in lines; UserError if it cannot read it.

    As the stage measures it, before there is a store, for `make check-config`.
    """
    figures = measure_fit(config, Path(config.model.checkpoint), _sample(config), progress)
    refuse_misfits(figures, config.scoring.require_fit, logging.getLogger(__name__))
    return "the base and this pool:\n  " + show_fit(figures).replace("; ", "\n  ")


def _sample(config: Config) -> Sequence[dict[str, Any]]:
    if config.data.source == "shapes":
        number = min(SAMPLE, config.data.pool_records)
        return [record.row() for record in make_records(number, "pool", config.data.seed)]
    records = spread_records(parquet_files(config.data.pool), FIT_COLUMNS, SAMPLE)
    if not any(row["questions"] for row in records) and config.questions is None:
        raise UserError("data.pool: no record of it has questions, so images cannot be scored")
    return records


STAGE = Stage(
    "fit",
    1,
    config_keys=(
        "model.family",
        "model.precision",
        "scoring.caption_encoder",
        "scoring.caption_pooling",
        "scoring.caption_score",
        "sampling.captions.max_new_tokens",
        "evaluation.bootstrap_samples",
        "evaluation.confidence",
    ),
    inputs=("pool", "base"),
    body=_body,
    files=lambda config: encoder_files(config.scoring.caption_encoder),
    unkeyed=("scoring.require_fit",),
)

if __name__ == "__main__":
    sys.exit(stage_command({"fit": STAGE}))
