"""Stage `evaluate`: judge a checkpoint on held-out records."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.command import stage_command
from core.config import IMAGE_SAMPLER, Config
from core.stage import Stage, StageContext
from data.tables import count_rows
from evals.evaluation import Evaluator, evaluate_pool, join_parts
from evals.judges.catalog import open_judge, read_record
from evals.judges.endpoint import judge_server
from evals.networks.caption_scorer import encoder_files
from models.batches import Batches


def _body(context: StageContext) -> Mapping[str, object] | None:
    config, test = context.config, context.input("test").parts()
    checkpoint, base = (context.input(name).path("model") for name in ("checkpoint", "base"))
    prepared = context.input("judge")
    record = read_record(prepared.path())
    batches = Batches.of_stage(
        "evaluate",
        config,
        checkpoint,
        f"lower evaluation.images_per_prompt = {config.evaluation.images_per_prompt}",
    )
    with open_judge(config, prepared.path(), record.types, base) as judge:
        complete = evaluate_pool(
            context.draft,
            test,
            Evaluator(config, checkpoint, judge),
            batches,
            config.sampling.shard_records,
            context.shard,
            context.progress,
        )
    if not complete:
        return None
    metrics, counts = join_parts(
        context.draft, config.evaluation, count_rows(test), record.provenance
    )
    values = {str(m["name"]): m["value"] for m in metrics if m["group"] == "all"}
    who = record.provenance
    return {
        **values,
        **counts,
        "judge": who.name,
        "independent": who.independent,
        "why": who.why,
        "judge_reads": prepared.manifest["results"]["reads"],
    }


def _encoder_files(config: Config) -> Sequence[Path]:
    judge = encoder_files(config.evaluation.folder) if config.evaluation.folder else []
    return [*encoder_files(config.scoring.caption_encoder), *judge]


EVALUATE = Stage(
    "evaluate",
    6,
    config_keys=(
        "model.family",
        "model.precision",
        "evaluation.judge",
        "evaluation.family",
        "evaluation.reader",
        "evaluation.endpoint.model?",
        "evaluation.images_per_prompt",
        "evaluation.bootstrap_samples",
        "evaluation.confidence",
        "scoring.caption_encoder",
        "scoring.caption_pooling",
        "scoring.caption_score",
        *IMAGE_SAMPLER,
        "sampling.captions.max_new_tokens",
        "sampling.shard_records",
    ),
    inputs=("test", "checkpoint", "base", "judge"),
    body=_body,
    files=_encoder_files,
    sharded=True,
    # What its folder holds is named by the digests of files.
    unkeyed=("evaluation.endpoint", "evaluation.folder", "evaluation.max_unanswered"),
    resources=judge_server,
)

if __name__ == "__main__":
    sys.exit(stage_command({"evaluate": EVALUATE}))
