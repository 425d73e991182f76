"""`python -m evals.gap`: U, G and their gap of any checkpoint on any pool with questions."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.command import run_command
from core.files import sha256_of
from core.progress import progress
from core.runtime import setup_logging
from core.stage import WHOLE
from data.checks import check_asked
from data.tables import count_rows, iter_batches, parquet_files, read_table
from evals.checkpoints import Checkpoint, open_checkpoint
from evals.outcome import is_finished, outcome

if TYPE_CHECKING:
    from core.config import Config
    from core.draft import Draft

ORACLE = "oracle"
METRICS = "metrics.parquet"
logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 after an error that a user can act on."""
    parser = argparse.ArgumentParser(
        prog="python -m evals.gap",
        description="Understanding U, generation G and their gap of a checkpoint, on a pool.",
    )
    parser.add_argument("--checkpoint", required=True, help="model folder, or URI of an artifact")
    parser.add_argument("--pool", required=True, type=Path, help="Parquet file or folder of a pool")
    parser.add_argument(
        "--to", required=True, type=Path, help="folder for tables; resumed if there"
    )
    parser.add_argument(
        "--judge",
        help="who answers about generated images: oracle (shapes world), or a checkpoint that does "
        "not learn from the answers; default: what the config says",
    )
    parser.add_argument(
        "--config",
        default="pipeline.yaml",
        help="model family, sampling, caption encoder, intervals and device (%(default)s)",
    )
    options = parser.parse_args(arguments)
    setup_logging()
    return run_command(lambda: _measure(options))


def _measure(options: argparse.Namespace) -> None:
    # Here, so that --help does not wait for the schema.
    from core.config import load_config

    config = load_config(options.config, {})
    checkpoint, judge = open_checkpoint(options.checkpoint), _judge(options.judge, config)
    files = parquet_files(options.pool)
    for batch in iter_batches(files, "pool", ["record_id", "questions"]):
        check_asked(batch, str(options.pool))
    # What memory is needed depends on who judges.
    chosen = {"judge": "base" if judge else ORACLE}
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update=chosen)})
    settings = _settings(config, checkpoint, judge, files)
    with outcome(options.to, "gap", settings) as draft:
        if not is_finished(options.to):
            _evaluate(config, checkpoint, judge, files, draft)
            draft.publish({"settings": settings})
    print(_table(options.to, checkpoint, judge))


def _judge(given: str | None, config: Config) -> Checkpoint | None:
    """Whom to ask about generated images; None: the oracle."""
    if (given or config.evaluation.judge) == ORACLE:
        return None
    return open_checkpoint(given or config.model.checkpoint)


def _settings(
    config: Config, checkpoint: Checkpoint, judge: Checkpoint | None, files: Sequence[Path]
) -> dict[str, Any]:
    """All that decides about the outcome; it may be continued as long as this stays the same."""
    document = config.model_dump(mode="json")
    scoring, sampling = document["scoring"], document["sampling"]
    return {
        "checkpoint": checkpoint.digest,
        "judge": judge.digest if judge else ORACLE,
        "pool": [sha256_of(file) for file in files],
        "family": config.model.family,
        "precision": config.model.precision,
        "images": {name: sampling["images"][name] for name in ("steps", "guidance", "temperature")},
        "max_new_tokens": sampling["captions"]["max_new_tokens"],
        "shard_records": sampling["shard_records"],
        "caption_scorer": {k: v for k, v in scoring.items() if k.startswith("caption_")},
        "evaluation": {k: v for k, v in document["evaluation"].items() if k != "judge"},
    }


def _evaluate(
    config: Config,
    checkpoint: Checkpoint,
    judge: Checkpoint | None,
    files: Sequence[Path],
    draft: Draft,
) -> None:
    from evals.evaluation import Evaluator, evaluate_pool, join_parts, judging
    from models.batches import Batches
    from models.memory_plan import Shape, for_evaluation

    batches = Batches.planned(
        for_evaluation(config, Shape.from_folder(checkpoint.folder)),
        f"lower evaluation.images_per_prompt = {config.evaluation.images_per_prompt}",
        config.runtime,
        logger,
    )
    with judging(config, judge.folder if judge else None) as asked:
        evaluator = Evaluator(config, checkpoint.folder, asked)
        shard = config.sampling.shard_records
        evaluate_pool(draft, files, evaluator, batches, shard, WHOLE, progress)
    join_parts(draft, config.evaluation, count_rows(files))


def _table(folder: Path, checkpoint: Checkpoint, judge: Checkpoint | None) -> str:
    """Over all records and by type of question, with intervals."""
    rows = read_table(folder / METRICS, "metrics").to_pylist()
    lines = [f"{checkpoint.name}, judged by {judge.name if judge else 'the pixel oracle'}"]
    for row in rows:
        if row["group"] == "all" or row["group"].startswith("type/"):
            lines.append(
                f"{row['group']:<18} {row['name']:<18} {row['value']:.3f} "
                f"[{row['low']:.3f}, {row['high']:.3f}]  {row['count']} records"
            )
    return "\n".join([*lines, f"tables: {folder}"])
