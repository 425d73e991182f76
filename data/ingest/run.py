"""An ingestion: chunk by chunk from a source into the parts of a pool and of a test set.

A chunk is a run of items whose end depends on the source alone. Its rows that may be held out are
staged, since only the end shows which of them are. A killed run goes on after the last chunk, with
everything that later chunks depend on taken from the ones before.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import UserError
from core.files import TemporaryFolder, locked, sweep
from core.progress import Progress, progress
from data.ingest.holdout import Holdout, picture_hash
from data.ingest.normalise import normalise
from data.ingest.parts import PART_BYTES, PART_ROWS, PartWriter, placed, rows_of
from data.ingest.questions import QuestionFile
from data.ingest.raw import BadRecordError, Item, Source
from data.ingest.state import Chunk, Counts, State, refuse_foreign
from data.tables import ROW_GROUP, iter_batches

VERSION = 1  # of what is made of a source; raise it when that changes
BAD = "bad.parquet"
BAD_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("where", "record_id", "what", "reason", "detail")]
)
MIN_SEEN = 1000  # records before which a run is not given up
FAR_ABOVE = 5
EXAMPLES = 3


@dataclass(frozen=True)
class Job:
    """What is asked of an ingestion. `arguments` tell it from others, beside the source.

    `test_records` or `test_share` are held out; 0: none.
    """

    to: Path
    arguments: Mapping[str, Any]
    test_records: int
    test_share: float
    max_bad_share: float
    max_caption: int


@dataclass
class _Running:
    """What goes from one chunk to the next."""

    holdout: Holdout
    counts: Counts = field(default_factory=Counts)
    ids: set[str] = field(default_factory=set)
    chunks: int = 0
    pool_parts: int = 0
    staged_parts: int = 0


def ingest(source: Source, questions: QuestionFile, job: Job) -> Counts:
    """Fill the folder of a job, or find it filled.

    UserError if it is another job's, or if too many records are bad; `bad.parquet` lists them.
    """
    refuse_foreign(job.to)
    temporary = job.to / ".tmp"
    with locked(job.to / ".lock"):
        sweep(temporary)
        scratch = TemporaryFolder(temporary)
        try:
            identity = {**job.arguments, "version": VERSION, "fingerprint": source.fingerprint()}
            state = State(job.to, identity, scratch)
            if state.results is not None:
                state.sweep()
                return Counts.of(state.results)
            return _Ingestion(source, questions, job, state, scratch).run()
        finally:
            scratch.close()


class _Ingestion:
    """One run of a job, from where the last one ended."""

    def __init__(
        self,
        source: Source,
        questions: QuestionFile,
        job: Job,
        state: State,
        scratch: TemporaryFolder,
    ) -> None:
        self._source, self._questions = source, questions
        self._job, self._state, self._scratch = job, state, scratch
        self._now = _Running(Holdout(job.test_records, job.test_share))

    def run(self) -> Counts:
        """All that is left to do."""
        now = self._now
        for chunk in self._state.chunks():
            for value in chunk.hashes:
                now.holdout.add(value)
            now.counts, now.chunks = chunk.counts, now.chunks + 1
            now.pool_parts, now.staged_parts = chunk.pool_parts, chunk.staged_parts
        now.ids = self._known_ids()
        with progress("ingest", self._source.total) as bar:
            bar.update(now.counts.seen)
            items = self._source.items(now.counts.seen)
            for item in items:
                self._chunk(chain([item], items), bar)
        self._judge()
        return self._finish()

    def _known_ids(self) -> set[str]:
        ids: set[str] = set()
        for prefix, count in (
            (self._pool, self._now.pool_parts),
            (self._staged, self._now.staged_parts),
        ):
            for number in range(count):
                path = prefix.with_name(f"{prefix.name}{number:05d}.parquet")
                ids.update(pq.read_table(path, columns=["record_id"])["record_id"].to_pylist())
        return ids

    @property
    def _pool(self) -> Path:
        return self._job.to / "pool" / "part-"

    @property
    def _staged(self) -> Path:
        return self._state.staging / "staged-"

    def _chunk(self, items: Iterator[Item], bar: Progress) -> None:
        """The next chunk of items."""
        now = self._now
        chunk = Chunk(now.counts, 0, 0)
        with (
            PartWriter(self._scratch, self._pool, now.pool_parts) as pool,
            PartWriter(self._scratch, self._staged, now.staged_parts) as staged,
        ):
            num_bytes = 0
            for number, item in enumerate(items, 1):
                row = self._row(item, chunk)
                if row is not None:
                    content = row["image"]["bytes"]
                    num_bytes += len(content)
                    value = picture_hash(content)
                    if now.holdout.admits(value):
                        now.holdout.add(value)
                        chunk.hashes.append(value)
                        staged.add(row)
                    else:
                        now.counts.pool += 1
                        pool.add(row)
                bar.update()
                self._judge_early(chunk)
                if number >= PART_ROWS or num_bytes >= PART_BYTES:
                    break
        now.pool_parts, now.staged_parts = pool.next_part, staged.next_part
        chunk.pool_parts, chunk.staged_parts = pool.next_part, staged.next_part
        self._state.commit(now.chunks, chunk)
        now.chunks += 1

    def _row(self, item: Item, chunk: Chunk) -> dict[str, Any] | None:
        """The row of an item, or None if it is set aside."""
        now, record_id = self._now, ""
        now.counts.seen += 1
        try:
            raw = item.load()
            record_id = raw.record_id.strip()
            if record_id in now.ids:
                raise BadRecordError("duplicate id")
            normal = normalise(raw, self._questions.of(record_id), self._job.max_caption)
        except BadRecordError as error:
            now.counts.bad[error.reason] += 1
            chunk.bad.append(_bad_row(item.where, record_id, "record", error))
            return None
        for problem in normal.bad_questions:
            now.counts.bad_questions[problem.reason] += 1
            chunk.bad.append(_bad_row(item.where, record_id, "question", problem))
        now.counts.without_questions += not normal.row["questions"]
        now.ids.add(record_id)
        return normal.row

    def _judge_early(self, chunk: Chunk) -> None:
        """Give up long before the end if far too many records are bad."""
        counts = self._now.counts
        limit = FAR_ABOVE * self._job.max_bad_share * counts.seen
        if counts.seen >= MIN_SEEN and counts.num_bad > limit:
            self._refuse(chunk.bad)

    def _judge(self) -> None:
        counts = self._now.counts
        if counts.seen == 0:
            raise UserError("the source has no records; give another")
        if counts.num_bad > self._job.max_bad_share * counts.seen:
            self._refuse([])

    def _refuse(self, more_bad: list[dict[str, str]]) -> None:
        counts = self._now.counts
        self._write_bad(more_bad)
        reasons = "; ".join(f"{reason}: {n}" for reason, n in counts.bad.most_common(EXAMPLES))
        raise UserError(
            f"{counts.num_bad} of {counts.seen} records are bad, more than --max-bad-share = "
            f"{self._job.max_bad_share:g} ({reasons}); {self._job.to / BAD} says which. Repair the "
            "source, name other fields or folders, or allow a larger share: finished parts are kept"
        )

    def _write_bad(self, more: list[dict[str, str]]) -> None:
        with (
            placed(self._scratch, self._job.to / BAD) as path,
            pq.ParquetWriter(path, BAD_SCHEMA) as writer,
        ):
            for rows in chain((chunk.bad for chunk in self._state.chunks()), [more]):
                if rows:
                    writer.write_table(pa.Table.from_pylist(rows, BAD_SCHEMA))

    def _finish(self) -> Counts:
        """Divide the staged rows; done anew, it writes the same files."""
        now, counts, limit = self._now, self._now.counts, self._now.holdout.limit
        test_prefix = self._job.to / "test" / "part-"
        counts.test = 0
        with (
            PartWriter(self._scratch, self._pool, now.pool_parts) as pool,
            PartWriter(self._scratch, test_prefix) as test,
        ):
            for row in self._staged_rows():
                held_out = picture_hash(row["image"]["bytes"]) < limit
                counts.test += held_out
                counts.pool += not held_out
                (test if held_out else pool).add(row)
        if counts.pool == 0:
            raise UserError(
                f"none of {counts.test + counts.pool} good records is left for the pool; hold out "
                "fewer (--test-records, --test-share)"
            )
        self._write_bad([])
        self._state.finish(counts.document())
        return counts

    def _staged_rows(self) -> Iterator[dict[str, Any]]:
        for number in range(self._now.staged_parts):
            path = self._staged.with_name(f"{self._staged.name}{number:05d}.parquet")
            for table in iter_batches(path, "pool", batch_size=ROW_GROUP):
                yield from rows_of(table)


def _bad_row(where: str, record_id: str, what: str, error: BadRecordError) -> dict[str, str]:
    texts = (where, record_id, what, error.reason, error.detail)
    # A bad text must not make the list of them bad.
    return {
        name: text.encode(errors="backslashreplace").decode()
        for name, text in zip(BAD_SCHEMA.names, texts, strict=True)
    }
