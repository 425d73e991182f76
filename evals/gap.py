"""`hermesflow gap`: U, G and their gap of any system on any pool with questions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.artifact import Artifact
from core.command import moved
from core.config import Config
from core.errors import UserError
from core.files import sha256_of
from core.progress import progress
from core.stage import WHOLE
from data.checks import check_asked
from data.results import COUNTS, RESULTS, results_text
from data.tables import count_rows, iter_batches, parquet_files, read_table
from evals.checkpoints import Checkpoint, is_finished, open_checkpoint, outcome
from evals.systems.catalog import DRAWS, READS, SystemChoice, opened_system

if TYPE_CHECKING:
    from core.artifact_writer import ArtifactWriter
    from evals.judges.base import Provenance

ORACLE = "oracle"
METRICS = "metrics.parquet"
NOT_SETTINGS = ("judge", "folder", "endpoint", "max_unanswered")  # named by a digest, or no matter
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What is measured on which pool; the options of `hermesflow gap`.

    `judge`: oracle, a checkpoint, or the URI of an artifact of stage judge; None: that of the
    config. `only` says which side of a system is measured that could do both. `answers` is a file
    of replies that stands for the side that reads.
    """

    systems: Sequence[SystemChoice]
    pool: Path
    to: Path
    judge: str | None = None
    only: Literal["reading", "drawing"] | None = None
    title: str | None = None
    answers: Path | None = None


def measure(given: Request, config: Config) -> None:
    """Write the tables of systems on a pool into a folder, or continue them; print them."""
    if given.answers:
        reads, draws = None, _drawer_beside_answers(given.systems, given.only)
    else:
        reads, draws = sides_of(given.systems, given.only)
    files = parquet_files(given.pool)
    for batch in iter_batches(files, "pool", ["record_id", "questions"]):
        check_asked(batch, str(given.pool))
    if reads is draws and reads is not None and reads.kind == "checkpoint":
        _measure_checkpoint(given, config, reads.place, files)
    else:
        _measure_systems(given, config, reads, draws, files)


def sides_of(
    systems: Sequence[SystemChoice], only: str | None
) -> tuple[SystemChoice | None, SystemChoice | None]:
    """Who reads and who draws; UserError if that is not clear."""
    reading = [one for one in systems if one.kind in READS]
    drawing = [one for one in systems if one.kind in DRAWS]
    if only and len(systems) != 1:
        raise UserError(f"--only {only} is for one system that does both; leave it out")
    if len(systems) == 1:
        reads = reading[0] if reading and only != "drawing" else None
        draws = drawing[0] if drawing and only != "reading" else None
        if reads is None and draws is None:
            raise UserError(f"--{systems[0].kind} does no {only}; leave --only out")
        return reads, draws
    if len(systems) == 2:
        # Who can do only one of both leaves the other side to the other system.
        for one, other in (systems, systems[::-1]):
            if one.kind not in DRAWS and other.kind in DRAWS:
                return one, other
            if one.kind not in READS and other.kind in READS:
                return other, one
    raise UserError(
        "gap measures one system, or one that reads and one that draws; give one of "
        "--checkpoint, --server, --transformers, --diffusers, --pictures and --answers, or two of "
        "which one does only one of both"
    )


def _drawer_beside_answers(
    systems: Sequence[SystemChoice], only: str | None
) -> SystemChoice | None:
    """Who draws while a file of replies reads, if somebody does."""
    if only:
        raise UserError(f"--only {only} is for one system that does both; --answers reads alone")
    for one in systems:
        if one.kind not in DRAWS:
            raise UserError(f"--answers and --{one.kind} both read; leave one of them")
    if len(systems) > 1:
        raise UserError(
            f"--answers reads, and --{systems[0].kind} and --{systems[1].kind} both draw; leave one"
        )
    return systems[0] if systems else None


def _measure_checkpoint(given: Request, config: Config, place: str, files: Sequence[Path]) -> None:
    checkpoint = open_checkpoint(place)
    judge = _judge(given.judge, config, checkpoint.folder)
    config = judge.config
    settings = _settings(config, judge, files) | {
        "checkpoint": checkpoint.digest,
        "family": config.model.family,
        "precision": config.model.precision,
    }
    with outcome(given.to, "gap", settings) as draft:
        if not is_finished(given.to):
            _evaluate(config, checkpoint, judge, files, draft)
            rows = read_table(draft.path(METRICS), "metrics").to_pylist()
            title = given.title or checkpoint.name
            _write_results(draft, title, settings, judge, rows, count_rows(files))
            draft.publish({"settings": settings})
    print(_table(given.to, checkpoint.name, judge))


def _measure_systems(
    given: Request,
    config: Config,
    reads: SystemChoice | None,
    draws: SystemChoice | None,
    files: Sequence[Path],
) -> None:
    from evals.judges.catalog import open_judge
    from evals.judges.endpoint import judge_server
    from evals.systems.answer_file import AnswerFile
    from evals.systems.gap import Sides, join_sides, measure_pool, prompts_of

    own = next((s for s in (reads, draws) if s and s.kind == "checkpoint"), None)
    base = open_checkpoint(own.place).folder if own else None
    judge = _not_itself(_judge(given.judge, config, base), (reads, draws))
    config, prompts = judge.config, prompts_of(files)
    replies = AnswerFile(given.answers, files) if given.answers else None
    with ExitStack() as stack:
        opened = {
            one: stack.enter_context(opened_system(one, config, prompts))
            for one in dict.fromkeys(s for s in (reads, draws) if s)
        }
        sides = Sides(opened[reads] if reads else replies, opened[draws] if draws else None)
        settings = _settings(config, judge, files) | {"system": sides.recipe}
        with outcome(given.to, "gap", settings) as draft:
            if not is_finished(given.to):
                served = stack.enter_context(judge_server(config))
                asked = stack.enter_context(
                    open_judge(served, judge.prepared, judge.types, base or judge.base)
                )
                measure_pool(draft, files, sides, asked, served)
                rows = join_sides(draft, files, sides, config.evaluation, judge.provenance)
                title = given.title or sides.title
                _write_results(draft, title, settings, judge, rows, count_rows(files))
                draft.publish({"settings": settings})
    print(_table(given.to, given.title or sides.title, judge))


def _write_results(
    draft: ArtifactWriter,
    title: str,
    settings: Mapping[str, object],
    judge: _Judge,
    rows: Sequence[Mapping[str, object]],
    number: int,
) -> None:
    judged = {"name": judge.provenance.name, "independent": judge.provenance.independent}
    recipe = {"benchmark": "gap", **settings, "judged by": judged}
    with draft.write(RESULTS) as path:
        path.write_text(results_text("gap", title, recipe, rows, number), encoding="utf-8")


@dataclass(frozen=True)
class _Judge:
    """Whom to ask about generated images: the config that says so, and what it has learnt."""

    config: Config
    provenance: Provenance
    digest: str
    prepared: Path = Path()
    types: tuple[str, ...] | None = None
    base: Path = Path()


def _judge(given: str | None, config: Config, base: Path | None) -> _Judge:
    """The judge; `base` is the folder of the checkpoint that is measured, if one is."""
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
        return _Judge(config, provenance_of(config, base), ORACLE)
    if given is None and kind == "base" and base is None:
        raise UserError(
            "evaluation.judge = 'base' asks the checkpoint that is measured, and none is; give "
            "--judge oracle, a checkpoint, or the URI of an artifact of stage judge"
        )
    if given is None and kind in ("reader", "nearest", "encoder"):
        raise UserError(
            f"evaluation.judge = {kind!r} learns from a pool first; give --judge the URI of the "
            "artifact of stage judge that a run has made (`hermesflow store lineage` shows it)"
        )
    if given is None and kind == "endpoint":
        assert config.evaluation.endpoint is not None  # as the config's own check has it
        # Its answers are those of this model, which the settings of the evaluation do not name.
        return _Judge(
            config, provenance_of(config, base), f"{kind} {config.evaluation.endpoint.model}"
        )
    named = given or config.evaluation.folder or config.model.checkpoint
    folder = open_checkpoint(named)
    # As a judge from elsewhere, whose weights are held against those of the judged one.
    config = _with(config, judge="checkpoint", folder=str(folder.folder))
    return _Judge(config, provenance_of(config, base), folder.digest)


def _with(config: Config, **changes: object) -> Config:
    evaluation = config.evaluation.model_copy(update=changes)
    return config.model_copy(update={"evaluation": evaluation})


def _not_itself(judge: _Judge, systems: Sequence[SystemChoice | None]) -> _Judge:
    """The judge, which is no independent one if it is a server's model that is also measured."""
    endpoint = judge.config.evaluation.endpoint
    measured = {one.place.rpartition("@")[0] for one in systems if one and one.kind == "server"}
    if judge.provenance.kind != "endpoint" or endpoint is None or endpoint.model not in measured:
        return judge
    why = "it is the system that is measured"
    return replace(judge, provenance=replace(judge.provenance, independent=False, why=why))


def _settings(config: Config, judge: _Judge, files: Sequence[Path]) -> dict[str, Any]:
    """All that decides about the outcome; it may be continued as long as this stays the same."""
    document = config.model_dump(mode="json")
    scoring, sampling = document["scoring"], document["sampling"]
    return {
        "judge": judge.digest,
        "pool": [sha256_of(file) for file in files],
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


def _table(folder: Path, title: str, judge: _Judge) -> str:
    """Over all records and by type of question, with intervals."""
    rows = read_table(folder / METRICS, "metrics").to_pylist()
    who = judge.provenance
    lines = [f"{title}, judged by {who.name}"]
    if not who.independent:
        lines.append(f"Not independent: {who.why}; G is what a relative of the model likes.")
    for row in rows:
        if row["name"].startswith((COUNTS, "pictures/")):
            lines.append(f"{row['name']}: {row['value']:.0f} of {row['count']}")
        elif row["group"] == "all" or row["group"].startswith("type/"):
            lines.append(
                f"{row['group']:<18} {row['name']:<18} {row['value']:.3f} "
                f"[{row['low']:.3f}, {row['high']:.3f}]  {row['count']} records"
            )
    return "\n".join([*lines, f"tables: {folder}"])


if __name__ == "__main__":
    moved("gap")
