"""Whether the base can read a config's pool, for `make check-config`: what stage `fit` measures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.config import Config
from core.errors import UserError
from core.progress import progress
from data.rows import spread_records
from data.tables import parquet_files
from evals.fit import SAMPLE, measure_fit, refuse_misfits, show_fit
from evals.networks.caption_scorer import CaptionScorer
from models.batches import Batches
from models.registry import load_model, use_threads
from tasks.fit import COLUMNS

logger = logging.getLogger(__name__)


def readability(config: Config) -> str:
    """What the base makes of a sample of the pool, in lines; UserError if it cannot read it."""
    use_threads(config.runtime.threads)
    records = _sample(config)
    scoring, model = config.scoring, config.model
    scorer = CaptionScorer.of(scoring, config.runtime.device)
    base = load_model(model.family, Path(model.checkpoint), config.runtime.device, model.precision)
    with progress("fit", len(records)) as bar:
        limit = config.sampling.captions.max_new_tokens
        batches = Batches.few(config.runtime)
        figures = measure_fit(base, scorer, records, limit, config.evaluation, batches, bar)
    refuse_misfits(figures, scoring.require_fit, logger)
    return "the base and this pool:\n  " + show_fit(figures).replace("; ", "\n  ")


def _sample(config: Config) -> Sequence[dict[str, Any]]:
    if config.data.source == "shapes":
        from data.shapes.records import make_records

        number = min(SAMPLE, config.data.pool_records)
        return [record.row() for record in make_records(number, "pool", config.data.seed)]
    records = spread_records(parquet_files(config.data.pool), COLUMNS, SAMPLE)
    if not any(row["questions"] for row in records) and config.questions is None:
        raise UserError("data.pool: no record of it has questions, so images cannot be scored")
    return records
