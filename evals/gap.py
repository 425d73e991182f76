"""`hermesflow gap`: U, G and their gap of any checkpoint on any pool with questions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.artifact import Artifact
from core.command import moved
from core.config import Config
from core.errors import UserError
from core.files import sha256_of
from core.progress import progress
from core.stage import WHOLE
from data.checks import check_asked
from data.tables import count_rows, iter_batches, parquet_files, read_table
from evals.checkpoints import Checkpoint, is_finished, open_checkpoint, outcome

if TYPE_CHECKING:
    from core.artifact_writer import ArtifactWriter
    from evals.judges.base import Provenance

ORACLE = "oracle"
METRICS = "metrics.parquet"
NOT_SETTINGS = ("judge", "folder", "endpoint", "max_unanswered")  # named by a digest, or no matter
logger = logging.getLogger(__name__)


def measure(
    config: Config, checkpoint_place: str, pool: Path, to: Path, judge_name: str | None
) -> None:
    """Write the tables of a checkpoint on a pool into `to`, or continue them; print them.

    `judge_name`: oracle, a checkpoint, or the URI of an artifact of stage judge; None: that of the
    config.
    """
    checkpoint = open_checkpoint(checkpoint_place)
    judge = _judge(judge_name, config, checkpoint)
    config = judge.config
    files = parquet_files(pool)
    for batch in iter_batches(files, "pool", ["record_id", "questions"]):
        check_asked(batch, str(pool))
    settings = _settings(config, checkpoint, judge, files)
    with outcome(to, "gap", settings) as draft:
        if not is_finished(to):
            _evaluate(config, checkpoint, judge, files, draft)
            draft.publish({"settings": settings})
    print(_table(to, checkpoint, judge))


@dataclass(frozen=True)
class _Judge:
    """Whom to ask about generated images: the config that says so, and what it has learnt."""

    config: Config
    provenance: Provenance
    digest: str
    prepared: Path = Path()
    types: tuple[str, ...] | None = None
    base: Path = Path()


def _judge(given: str | None, config: Config, checkpoint: Checkpoint) -> _Judge:
    from evals.judges.catalog import JUDGE, provenance_of, read_record

    kind = config.evaluation.judge
    if given and given != ORACLE and "://" in given:
        artifact = Artifact(given)
        if artifact.manifest["stage"] != JUDGE.partition(".")[0]:
            raise UserError(f"--judge {given} is of stage {artifact.manifest['stage']}, not judge")
        record = read_record(artifact.path())
        config = _with(config, judge=record.provenance.kind)
        digest = artifact.ref.digest
        return _Judge(config, record.provenance, digest, artifact.path(), record.types)
    if given == ORACLE or (given is None and kind == ORACLE):
        config = _with(config, judge=ORACLE, folder=None)
        return _Judge(config, provenance_of(config, checkpoint.folder), ORACLE)
    if given is None and kind in ("reader", "nearest", "encoder"):
        raise UserError(
            f"evaluation.judge = {kind!r} learns from a pool first; give --judge the URI of the "
            "artifact of stage judge that a run has made (`hermesflow store lineage` shows it)"
        )
    if given is None and kind == "endpoint":
        return _Judge(config, provenance_of(config, checkpoint.folder), kind)
    named = given or config.evaluation.folder or config.model.checkpoint
    folder = open_checkpoint(named)
    # As a judge from elsewhere, whose weights are held against those of the judged one.
    config = _with(config, judge="checkpoint", folder=str(folder.folder))
    return _Judge(config, provenance_of(config, checkpoint.folder), folder.digest)


def _with(config: Config, **changes: object) -> Config:
    evaluation = config.evaluation.model_copy(update=changes)
    return config.model_copy(update={"evaluation": evaluation})


def _settings(
    config: Config, checkpoint: Checkpoint, judge: _Judge, files: Sequence[Path]
) -> dict[str, Any]:
    """All that decides about the outcome; it may be continued as long as this stays the same."""
    document = config.model_dump(mode="json")
    scoring, sampling = document["scoring"], document["sampling"]
    return {
        "checkpoint": checkpoint.digest,
        "judge": judge.digest,
        "pool": [sha256_of(file) for file in files],
        "family": config.model.family,
        "precision": config.model.precision,
        "images": {k: v for k, v in sampling["images"].items() if k != "num_samples"},
        "max_new_tokens": sampling["captions"]["max_new_tokens"],
        "shard_records": sampling["shard_records"],
        "caption_scorer": {k: v for k, v in scoring.items() if k.startswith("caption_")},
        "evaluation": {k: v for k, v in document["evaluation"].items() if k not in NOT_SETTINGS},
    }


def _evaluate(
    config: Config,
    checkpoint: Checkpoint,
    judge: _Judge,
    files: Sequence[Path],
    draft: ArtifactWriter,
) -> None:
    from evals.evaluation import Evaluator, evaluate_pool, join_parts
    from evals.judges.catalog import open_judge
    from evals.judges.endpoint import judge_server
    from models.batches import Batches

    batches = Batches.of_stage(
        "evaluate",
        config,
        checkpoint.folder,
        f"lower evaluation.images_per_prompt = {config.evaluation.images_per_prompt}",
    )
    with (
        judge_server(config) as served,
        open_judge(served, judge.prepared, judge.types, judge.base) as asked,
    ):
        evaluator = Evaluator(config, checkpoint.folder, asked)
        shard = config.sampling.shard_records
        evaluate_pool(draft, files, evaluator, batches, shard, WHOLE, progress)
    join_parts(draft, config.evaluation, count_rows(files), judge.provenance)


def _table(folder: Path, checkpoint: Checkpoint, judge: _Judge) -> str:
    """Over all records and by type of question, with intervals."""
    rows = read_table(folder / METRICS, "metrics").to_pylist()
    who = judge.provenance
    lines = [f"{checkpoint.name}, judged by {who.name}"]
    if not who.independent:
        lines.append(f"Not independent: {who.why}; G is what a relative of the model likes.")
    for row in rows:
        if row["group"] == "all" or row["group"].startswith("type/"):
            lines.append(
                f"{row['group']:<18} {row['name']:<18} {row['value']:.3f} "
                f"[{row['low']:.3f}, {row['high']:.3f}]  {row['count']} records"
            )
    return "\n".join([*lines, f"tables: {folder}"])


if __name__ == "__main__":
    moved("gap")
