"""Stage `questions`: a pool whose records have questions, written from their captions.

By a language model, or by rules and the words of the pool (`questions.by`). Of the latter kind only
types stay that the base answers better than chance about real pictures of the pool: what it answers
no better would reward noise. This is decided by type and on the pool, never by record, since a test
set of questions that the model answers rightly would say nothing about it.

Takes a pool (or a test set) and takes its place. What the pool brings stays first and as it is.
Parts follow each other shard by shard, so a killed stage continues; `provenance/` says of every
question where it comes from, and of those that were dropped, why.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from core.artifact import part_name
from core.artifact_writer import SCRATCH, ArtifactWriter
from core.command import stage_command
from core.config import Config, Questions
from core.counts import keep_counts, kept_counts
from core.errors import UserError
from core.progress import Progress
from core.stage import Stage, StageContext
from data.caption_questions import Words, words_of, write_questions
from data.rows import spread_records
from data.schemas import arrow_schema
from data.tables import TableWriter, decode_image, iter_batches
from evals.checkpoints import open_model
from evals.statistics import Bootstrap
from evals.vqa import Answered, ask, only_answered
from models.batches import Batches
from models.protocol import TextReader, UnifiedModel
from models.registry import load_texts
from services.endpoint import COUNTED, Client
from services.question_writer import LLM, POOL, PROMPT_VERSION, REASONS, Candidate, QuestionWriter
from services.vllm_server import served

PROVENANCE = "provenance/"
WITHOUT = "without.json"
"""The ids of the records that have no question."""
TYPES = f"{SCRATCH}types.json"
SHOWN = 3

Row = dict[str, Any]
MEASURED = 256  # records whose pictures the base is asked about
SEVERAL = 3  # times as many questions are written as are kept
BOOTSTRAP = Bootstrap(2000, 0.95)
RULES = "rules"
# Why a question by rules was dropped.
UNREAD_TYPE, SAME_CHOICES, SURPLUS = "unread_type", "same_choices", "surplus"

Types = Mapping[str, float | None]
"""U of the base by type; None where that is no more than chance."""


def _body(context: StageContext) -> Mapping[str, object]:
    settings, size = _settings(context.config), context.config.sampling.shard_records
    pool = context.input("pool").parts()
    sizes = [ids.num_rows for ids in iter_batches(pool, "pool", ["record_id"], batch_size=size)]
    missing = {index for index in range(len(sizes)) if not _has(context.draft, index)}
    with context.progress(context.stage.name, sum(sizes)) as bar:
        bar.update(sum(sizes) - sum(sizes[index] for index in missing))
        write = _by_captions if settings.by == "captions" else _by_model
        found = write(context, missing, bar)
    results = _results(context, len(sizes))
    check_without(results, settings)
    return {**results, **found}


def _shards(
    context: StageContext, missing: Collection[int], columns: list[str] | None = None
) -> Iterator[tuple[int, pa.Table]]:
    """Records of the parts that were not there at the start."""
    pool, size = context.input("pool").parts(), context.config.sampling.shard_records
    shards = enumerate(iter_batches(pool, "pool", columns, batch_size=size))
    return ((index, shard) for index, shard in shards if index in missing)


def _by_captions(
    context: StageContext, missing: Collection[int], bar: Progress
) -> dict[str, object]:
    """Each shard by the rules of `data.caption_questions`; types that the base cannot read go."""
    settings = _settings(context.config)
    words = words_of(_captions(context.input("about").parts()))
    types = _types(context, words)
    read = load_texts(context.config.model.family, context.input("base").path("model"))
    for index, shard in _shards(context, missing):
        asked = [
            _by_rules(row, words, settings.per_record, types, read)
            for row in shard.select(["record_id", "caption", "questions"]).to_pylist()
        ]
        _write_shard(context.draft, index, shard, asked, "")
        bar.update(shard.num_rows)
    return {f"U/{kind}": value for kind, value in types.items()}


def _by_model(context: StageContext, missing: Collection[int], bar: Progress) -> dict[str, object]:
    """Each shard by a language model, with requests that do not wait at the end of a shard."""
    settings = _settings(context.config)
    if not missing:
        return {}
    assert settings.endpoint is not None
    with Client(settings.endpoint, "questions.endpoint") as client:
        writer = QuestionWriter(client, settings.per_record, settings.min_f1)

        def ask(record: Row) -> list[Candidate]:
            record_id = record["record_id"]
            try:
                return writer.candidates(record_id, record["caption"], record["questions"])
            except UserError as error:  # a caption may be more than the model takes
                raise UserError(f"record {record_id!r}: {error}") from None

        # Read twice, so that pictures do not wait in memory for their questions.
        texts = _shards(context, missing, ["record_id", "caption", "questions"])
        records = (row for _, shard in texts for row in shard.to_pylist())
        with closing(client.map(ask, records)) as results:
            for index, shard in _shards(context, missing):
                asked = []
                for candidates in islice(results, shard.num_rows):
                    asked.append(candidates)
                    bar.update()
                keep_counts(context.draft, COUNTED, f"{index:05d}", client.take_counts())
                _write_shard(context.draft, index, shard, asked, settings.endpoint.model)
    return {}


def _captions(files: Sequence[Path]) -> Iterator[str]:
    for batch in iter_batches(files, "pool", ["caption"]):
        yield from batch["caption"].to_pylist()


def _types(context: StageContext, words: Words) -> dict[str, float | None]:
    """U of the base by type of question on real pictures of the pool, measured once."""
    config, draft = context.config, context.draft
    if draft.has(TYPES):
        known: dict[str, float | None] = json.loads(draft.path(TYPES).read_text(encoding="utf-8"))
        return known
    model = open_model(config, context.input("base").path("model"))
    columns = ["record_id", "image", "caption"]
    records = spread_records(context.input("about").parts(), columns, MEASURED)
    with context.progress("read by the base", len(records)) as bar:
        most, batches = _settings(config).per_record, Batches.few(config.runtime)
        types = _readable_types(model, records, words, most, batches, bar)
    with draft.write(TYPES) as path:
        path.write_text(json.dumps(types), encoding="utf-8")
    read = {kind for kind, value in types.items() if value is not None}
    context.logger.info(
        "the base reads questions of the types %s; no better than chance: %s",
        ", ".join(sorted(read)) or "none", ", ".join(sorted(set(types) - read)) or "none",
    )  # fmt: skip
    return types


def _by_rules(row: Row, words: Words, most: int, types: Types, read: TextReader) -> list[Candidate]:
    """What the record brings, then what the rules write; what the model cannot read is dropped.

    Those are types that it answers no better than chance, and choices that are the same to it.
    """
    written = [
        Candidate(**question, source=RULES)
        for question in write_questions(row["record_id"], row["caption"], words, SEVERAL * most)
    ]
    kept = 0
    for candidate in written:
        if types.get(candidate.type) is None:
            candidate.reason = UNREAD_TYPE
        elif len({use.ids for use in read(candidate.choices, "answer")}) < len(candidate.choices):
            candidate.reason = SAME_CHOICES
        elif kept >= most:
            candidate.reason = SURPLUS
        else:
            kept += 1
    return [Candidate(**question, source=POOL) for question in row["questions"]] + written


def _readable_types(
    model: UnifiedModel,
    records: Sequence[Row],
    words: Words,
    most: int,
    batches: Batches,
    bar: Progress,
) -> dict[str, float | None]:
    """U of a model by type of question, on the pictures and captions of some records."""
    leads: dict[str, list[float]] = {}
    rights: dict[str, list[float]] = {}

    def look(first: int, last: int) -> list[list[Answered]]:
        part = records[first:last]
        asked = [write_questions(r["record_id"], r["caption"], words, SEVERAL * most) for r in part]
        seen = model.see([decode_image(r["image"]) for r in part])
        return ask(model, seen, asked)

    for answers in batches.map(len(records), look):
        for image in answers:
            for one in only_answered(image):
                kind = one.question["type"]
                rights.setdefault(kind, []).append(float(one.right))
                leads.setdefault(kind, []).append(one.right - 1 / len(one.question["choices"]))
        bar.update(len(answers))
    return {
        kind: float(np.mean(rights[kind])) if _above_chance(lead) else None
        for kind, lead in sorted(leads.items())
    }


def _above_chance(leads: Sequence[float]) -> bool:
    return BOOTSTRAP.mean(np.asarray(leads, np.float64)).low > 0


def _write_shard(
    draft: ArtifactWriter, index: int, shard: pa.Table, asked: list[list[Candidate]], model: str
) -> None:
    """One part of the pool with its questions, and where all of them come from."""
    schema = arrow_schema("pool")
    position = schema.get_field_index("questions")
    kept = [[c.row() for c in candidates if c.kept] for candidates in asked]
    column = pa.array(kept, type=schema.field(position).type)
    rows = [
        _provenance(record_id, number, candidate, model)
        for record_id, candidates in zip(shard["record_id"].to_pylist(), asked, strict=True)
        for number, candidate in enumerate(candidates)
    ]
    with (
        draft.write(PROVENANCE + part_name(index)) as path,
        TableWriter(path, "question_provenance") as writer,
    ):
        writer.write(rows)
    # Last, since it says that the shard is done; its images have been decoded before.
    with draft.write(part_name(index)) as path, TableWriter(path, "pool", deep=False) as writer:
        writer.write(shard.set_column(position, schema.field(position), column))


def _has(draft: ArtifactWriter, index: int) -> bool:
    return draft.has_all((part_name(index), PROVENANCE + part_name(index)))


def _provenance(record_id: str, number: int, candidate: Candidate, model: str) -> Row:
    by_model = candidate.source == LLM
    return {
        "record_id": record_id,
        "number": number,
        "question": candidate.question,
        "type": candidate.type,
        "answer": candidate.answer,
        "source": candidate.source,
        "model": model if by_model else "",
        "prompt_version": PROMPT_VERSION if by_model else "",
        "entity": candidate.entity,
        "reply": candidate.reply,
        "f1": candidate.f1,
        "kept": candidate.kept,
        "reason": candidate.reason,
    }


def _results(context: StageContext, num_parts: int) -> dict[str, object]:
    """Counts for the manifest, after the list of records without questions is written."""
    draft = context.draft
    counts: Counter[str] = Counter()
    without: list[str] = []
    for index in range(num_parts):
        columns = ["record_id", "category", "questions"]
        for batch in iter_batches(draft.path(part_name(index)), "pool", columns):
            for row in batch.to_pylist():
                counts.update(["records", f"category/{row['category']}"])
                counts["questions"] += len(row["questions"])
                if not row["questions"]:
                    without.append(row["record_id"])
        path = draft.path(PROVENANCE + part_name(index))
        for batch in iter_batches(path, "question_provenance", ["source", "reason"]):
            for row in batch.to_pylist():
                counts.update([f"from/{row['source']}"] if not row["reason"] else [])
                counts.update(["written"] if row["source"] != POOL else [])
                counts.update([f"dropped/{row['reason']}"] if row["reason"] else [])
    with draft.write(WITHOUT) as file:
        file.write_text(json.dumps(without, indent=0) + "\n", encoding="utf-8")
    reasons = (*REASONS, UNREAD_TYPE, SAME_CHOICES, SURPLUS)
    zeros = dict.fromkeys((f"dropped/{reason}" for reason in reasons), 0)
    shown: dict[str, object] = {"without": len(without), "without_first": without[:SHOWN]}
    return zeros | dict(counts) | shown | kept_counts(draft, COUNTED)


def check_without(results: Mapping[str, Any], settings: Questions) -> None:
    """UserError if more records than allowed have no question."""
    share = results["without"] / max(results["records"], 1)
    if share <= settings.max_without:
        return
    dropped = {
        name: results.get(f"dropped/{name}", 0) for name in (*REASONS, UNREAD_TYPE, SAME_CHOICES)
    }
    why = ", ".join(f"{name} {count}" for name, count in dropped.items() if count) or "none"
    some = ", ".join(map(repr, results["without_first"]))
    raise UserError(
        f"{results['without']} of {results['records']} records have no question, {some} for "
        f"example, which is more than questions.max_without = {settings.max_without:g} of them; "
        "raise it to leave them out, or get more questions by a better model, a higher "
        "questions.per_record, a lower questions.min_f1 or longer captions "
        f"(written: {results.get('written', 0)}; dropped: {why})"
    )


def _settings(config: Config) -> Questions:
    if config.questions is None:
        raise UserError("questions is null; say there which model writes them, or skip this stage")
    return config.questions


@contextmanager
def _with_server(config: Config) -> Iterator[Config]:
    questions = _settings(config)
    if questions.endpoint is None:
        yield config
        return
    with served(questions.endpoint, "questions.endpoint") as endpoint:
        changed = questions.model_copy(update={"endpoint": endpoint})
        yield config.model_copy(update={"questions": changed})


QUESTIONS = Stage(
    "questions",
    int(PROMPT_VERSION),
    config_keys=(
        "questions.by?",
        "questions.endpoint.model?",
        "questions.per_record?",
        "questions.min_f1?",
        "sampling.shard_records",
    ),
    # Where rules write: the records whose captions give wrong choices, and who reads real pictures.
    inputs=("pool", "about", "base"),
    body=_body,
    unkeyed=(
        "questions.endpoint",
        "questions.max_without",
        "model.family",
        "model.precision",
    ),
    resources=_with_server,
)

if __name__ == "__main__":
    sys.exit(stage_command({"questions": QUESTIONS}))
