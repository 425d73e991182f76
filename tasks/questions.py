"""Stage `questions`: a pool whose records have questions, written by a language model.

Takes a pool (or a test set) and takes its place. What the pool brings stays first and as it is.
Parts follow each other shard by shard, so a killed stage continues; `provenance/` says of every
question where it comes from, and of those that were dropped, why.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any

import pyarrow as pa

from core.artifact import part_name
from core.command import stage_command
from core.config import Config, Questions
from core.counts import keep_counts, kept_counts
from core.draft import Draft
from core.errors import UserError
from core.progress import Progress
from core.stage import Stage, StageContext
from data.schemas import arrow_schema
from data.tables import TableWriter, iter_batches
from models.endpoint import COUNTED, Client
from models.question_writer import LLM, PROMPT_VERSION, REASONS, Candidate, QuestionWriter
from models.vllm_server import served

PROVENANCE = "provenance/"
WITHOUT = "without.json"
"""The ids of the records that have no question."""
SHOWN = 3

Row = dict[str, Any]


def _body(context: StageContext) -> Mapping[str, object]:
    settings = _settings(context.config)
    pool, size = context.input("pool").parts(), context.config.sampling.shard_records
    sizes = [ids.num_rows for ids in iter_batches(pool, "pool", ["record_id"], batch_size=size)]
    missing = [index for index in range(len(sizes)) if not _has(context.draft, index)]
    with context.progress(context.stage.name, sum(sizes)) as bar:
        bar.update(sum(sizes) - sum(sizes[index] for index in missing))
        if missing:
            with Client(settings.endpoint, "questions.endpoint") as client:
                writer = QuestionWriter(client, settings.per_record, settings.min_f1)
                _Shards(context, client, writer, missing).write(bar)
    results = _results(context, len(sizes))
    check_without(results, settings)
    return results


class _Shards:
    """Writes the missing parts, with requests that do not wait at the end of a shard."""

    def __init__(
        self, context: StageContext, client: Client, writer: QuestionWriter, missing: Sequence[int]
    ) -> None:
        self._draft, self._client, self._writer = context.draft, client, writer
        self._missing = set(missing)
        self._pool = context.input("pool").parts()
        self._size = context.config.sampling.shard_records
        self._model = _settings(context.config).endpoint.model

    def write(self, bar: Progress) -> None:
        """One part of the pool and of the provenance for each shard."""
        with closing(self._client.map(self._ask, self._records())) as results:
            # Read twice, so that pictures do not wait in memory for their questions.
            for index, shard in self._shards(None):
                asked = []
                for candidates in islice(results, shard.num_rows):
                    asked.append(candidates)
                    bar.update()
                self._write_shard(index, shard, asked)

    def _shards(self, columns: list[str] | None) -> Iterator[tuple[int, pa.Table]]:
        shards = iter_batches(self._pool, "pool", columns, batch_size=self._size)
        return ((index, shard) for index, shard in enumerate(shards) if index in self._missing)

    def _records(self) -> Iterator[Row]:
        for _, shard in self._shards(["record_id", "caption", "questions"]):
            yield from shard.to_pylist()

    def _ask(self, record: Row) -> list[Candidate]:
        record_id = record["record_id"]
        try:
            return self._writer.candidates(record_id, record["caption"], record["questions"])
        except UserError as error:  # a caption may be more than the model takes
            raise UserError(f"record {record_id!r}: {error}") from None

    def _write_shard(self, index: int, shard: pa.Table, asked: list[list[Candidate]]) -> None:
        schema = arrow_schema("pool")
        position = schema.get_field_index("questions")
        kept = [[c.row() for c in candidates if c.kept] for candidates in asked]
        column = pa.array(kept, type=schema.field(position).type)
        ids = shard["record_id"].to_pylist()
        rows = [
            _provenance(record_id, number, candidate, self._model)
            for record_id, candidates in zip(ids, asked, strict=True)
            for number, candidate in enumerate(candidates)
        ]
        with (
            self._draft.write(PROVENANCE + part_name(index)) as path,
            TableWriter(path, "question_provenance") as writer,
        ):
            writer.write(rows)
        keep_counts(self._draft, COUNTED, f"{index:05d}", self._client.take_counts())
        # Last, since it says that the shard is done; its images have been decoded before.
        with (
            self._draft.write(part_name(index)) as path,
            TableWriter(path, "pool", deep=False) as writer,
        ):
            writer.write(shard.set_column(position, schema.field(position), column))


def _has(draft: Draft, index: int) -> bool:
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
                counts.update(["written"] if row["source"] == LLM else [])
                counts.update([f"dropped/{row['reason']}"] if row["reason"] else [])
    with draft.write(WITHOUT) as file:
        file.write_text(json.dumps(without, indent=0) + "\n", encoding="utf-8")
    zeros = dict.fromkeys((f"dropped/{reason}" for reason in REASONS), 0)
    shown: dict[str, object] = {"without": len(without), "without_first": without[:SHOWN]}
    return zeros | dict(counts) | shown | kept_counts(draft, COUNTED)


def check_without(results: Mapping[str, Any], settings: Questions) -> None:
    """UserError if more records than allowed have no question."""
    share = results["without"] / max(results["records"], 1)
    if share <= settings.max_without:
        return
    dropped = {name: results[f"dropped/{name}"] for name in REASONS}
    why = ", ".join(f"{name} {count}" for name, count in dropped.items() if count) or "none"
    some = ", ".join(map(repr, results["without_first"]))
    raise UserError(
        f"{results['without']} of {results['records']} records have no question, {some} for "
        f"example, which is more than questions.max_without = {settings.max_without:g} of them; "
        "raise it to leave them out, or get more questions by a better model, a higher "
        "questions.per_record or a lower questions.min_f1 "
        f"(written: {results.get('written', 0)}; dropped: {why})"
    )


def _settings(config: Config) -> Questions:
    if config.questions is None:
        raise UserError("questions is null; say there which model writes them, or skip this stage")
    return config.questions


@contextmanager
def _with_server(config: Config) -> Iterator[Config]:
    questions = _settings(config)
    with served(questions.endpoint, "questions.endpoint") as endpoint:
        changed = questions.model_copy(update={"endpoint": endpoint})
        yield config.model_copy(update={"questions": changed})


QUESTIONS = Stage(
    "questions",
    int(PROMPT_VERSION),
    reads=(
        "questions.endpoint.model?",
        "questions.per_record?",
        "questions.min_f1?",
        "sampling.shard_records",
    ),
    inputs=("pool",),
    body=_body,
    unkeyed=("questions.endpoint", "questions.max_without"),
    around=_with_server,
)

if __name__ == "__main__":
    sys.exit(stage_command({"questions": QUESTIONS}))
