"""Stage `fit`: whether the base can read this pool at all, on a sample of it, before any work.

Self-play on a pool that the model cannot read trains on noise. So the base answers questions about
some real pictures and describes them, and its tokenizer is asked what becomes of the texts.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from core.command import stage_command
from core.stage import Stage, StageContext
from data.rows import spread_records
from evals.fit import SAMPLE, find_misfits, measure_fit, refuse_misfits, show_fit
from evals.networks.caption_scorer import CaptionScorer, encoder_files
from models.batches import Batches
from models.registry import load_model, use_threads

COLUMNS = ["record_id", "image", "prompt", "caption", "references", "questions"]


def _body(context: StageContext) -> Mapping[str, object]:
    config = context.config
    use_threads(config.runtime.threads)
    model = load_model(
        config.model.family,
        context.input("base").path("model"),
        config.runtime.device,
        config.model.precision,
    )
    scorer = CaptionScorer.of(config.scoring, config.runtime.device)
    records = spread_records(context.input("pool").parts(), COLUMNS, SAMPLE)
    with context.progress(context.stage.name, len(records)) as bar:
        figures = measure_fit(
            model,
            scorer,
            records,
            config.sampling.captions.max_new_tokens,
            config.evaluation,
            Batches.few(config.runtime),
            bar,
        )
    context.logger.info("the base and this pool: %s", show_fit(figures))
    refuse_misfits(figures, config.scoring.require_fit, context.logger)
    return {**figures, "misfits": find_misfits(figures)}


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
    files=lambda config: [Path(p) for p in encoder_files(config.scoring.caption_encoder)],
    unkeyed=("scoring.require_fit",),
)

if __name__ == "__main__":
    sys.exit(stage_command({"fit": STAGE}))
