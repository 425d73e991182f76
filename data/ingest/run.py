"""An ingestion: chunk by chunk from a source into the parts of a pool and of a test set.

A chunk is a run of items whose end depends on the source alone. Its rows are staged, since only all
pictures together show which of them look alike, and thus which are held out. A killed run goes on
after the last chunk, with everything that later chunks depend on taken from the ones before.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import UserError
from core.files import TemporaryFolder, locked, sweep
from core.progress import Progress, progress
from data.ingest.division import Division, held_out
from data.ingest.images import taken_image
from data.ingest.normalise import Normal, normalise, texts_of
from data.ingest.parts import PART_BYTES, PART_ROWS, PartWriter, placed
from data.ingest.questions import QuestionFile
from data.ingest.raw import BadRecordError, Item, RawRecord, Source, missing
from data.ingest.state import COUNTS, STAGED, Chunk, Counts, Plan, State, refuse_foreign
from data.looks import LOOK, Looks, grouped, pixel_hash
from data.tables import count_rows

VERSION = 2  # of what is made of a source; raise it when that changes
BAD = "bad.parquet"
BAD_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("where", "record_id", "what", "reason", "detail")]
)
TWINS = "twins.parquet"
TWINS_SCHEMA = pa.schema([(name, pa.string()) for name in ("record_id", "twin")])
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
                return COUNTS.validate_python(state.results)
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
        # What goes from one chunk to the next; ids with the pixel hash of their picture.
        self._counts, self._ids = Counts(), dict[str, int]()
        self._chunks = self._staged_parts = 0

    def run(self) -> Counts:
        """All that is left to do."""
        looks = [np.empty(0, LOOK)]
        for chunk in self._state.chunks():
            looks.append(self._state.looks(self._chunks))
            self._counts, self._chunks = chunk.counts, self._chunks + 1
            self._staged_parts = chunk.staged_parts
        plan = self._state.plan()
        if plan is None:
            pixels = map(int, np.concatenate(looks)["pixels"])
            self._ids = dict(zip(self._staged_ids(), pixels, strict=True))
            looks += self._read()
            self._judge()
            plan = self._plan(np.concatenate(looks))
        return self._finish(plan, np.concatenate(looks))

    def _read(self) -> list[Looks]:
        """Stage what is left of the source, chunk by chunk; returns the looks of its pictures."""
        looks = []
        with progress("ingest", self._source.total) as bar:
            bar.update(self._counts.seen)
            items = self._source.items(self._counts.seen)
            for item in items:
                looks.append(self._chunk(chain([item], items), bar))
        return looks

    def _staged_ids(self) -> Iterator[str]:
        for number in range(self._staged_parts):
            table = pq.read_table(self._state.staged(number), columns=["record_id"])
            yield from table["record_id"].to_pylist()

    def _chunk(self, items: Iterator[Item], bar: Progress) -> Looks:
        """The next chunk of items; returns the looks of its rows."""
        chunk, looks, num_bytes = Chunk(self._counts), [np.empty(0, LOOK)], 0
        prefix = self._state.staging / STAGED
        with PartWriter(self._scratch, prefix, self._staged_parts) as staged:
            for number, item in enumerate(items, 1):
                normal = self._normal(item, chunk)
                if normal is not None:
                    num_bytes += len(normal.row["image"]["bytes"])
                    looks.append(normal.look)
                    staged.add(normal.row)
                bar.update()
                self._judge_early(chunk)
                if number >= PART_ROWS or num_bytes >= PART_BYTES:
                    break
        self._staged_parts = chunk.staged_parts = staged.next_part
        found = np.concatenate(looks)
        self._state.commit(self._chunks, chunk, found)
        self._chunks += 1
        return found

    def _normal(self, item: Item, chunk: Chunk) -> Normal | None:
        """What an item becomes, or None if it is set aside or joins an earlier record."""
        record_id = ""
        self._counts.seen += 1
        self._counts.changes.update(item.notes)
        try:
            raw = item.load()
            record_id = raw.record_id.strip()
            if record_id in self._ids:
                self._join(item, raw, record_id, chunk)
                return None
            normal = normalise(raw, self._questions.of(record_id), self._job.max_caption)
        except BadRecordError as error:
            self._counts.bad[error.reason] += 1
            chunk.bad.append(_bad_row(item.where, record_id, "record", error))
            return None
        self._note_questions(item, record_id, normal.bad_questions, chunk)
        self._counts.changes.update(dict.fromkeys(normal.changes, 1))
        self._counts.without_questions += not normal.row["questions"]
        self._ids[record_id] = int(normal.look["pixels"][0])
        return normal

    def _join(self, item: Item, raw: RawRecord, record_id: str, chunk: Chunk) -> None:
        """Have captions and questions of a picture join the record that it has already.

        BadRecordError if another picture has this id, or the row has a prompt that would be lost.
        """
        texts = texts_of(raw, (), self._job.max_caption)
        if not missing(raw.prompt):
            raise BadRecordError("duplicate id", "and a prompt of its own")
        if not raw.by_path:
            picture = taken_image(raw.image()).picture
            if pixel_hash(picture) != self._ids[record_id]:
                raise BadRecordError("duplicate id", "with another picture")
        self._note_questions(item, record_id, texts.bad_questions, chunk)
        self._counts.joined += 1
        self._counts.changes.update(dict.fromkeys(raw.notes, 1))
        chunk.joined.append(
            {"record_id": record_id, "captions": texts.captions, "questions": texts.questions}
        )

    def _note_questions(
        self, item: Item, record_id: str, problems: list[BadRecordError], chunk: Chunk
    ) -> None:
        for problem in problems:
            self._counts.bad_questions[problem.reason] += 1
            chunk.bad.append(_bad_row(item.where, record_id, "question", problem))

    def _judge_early(self, chunk: Chunk) -> None:
        """Give up long before the end if far too many records are bad."""
        counts = self._counts
        limit = FAR_ABOVE * self._job.max_bad_share * counts.seen
        if counts.seen >= MIN_SEEN and counts.num_bad > limit:
            self._refuse(chunk.bad)

    def _judge(self) -> None:
        counts = self._counts
        if counts.seen == 0:
            raise UserError("the source has no records; give another")
        if counts.num_bad > self._job.max_bad_share * counts.seen:
            self._refuse([])

    def _refuse(self, more_bad: list[dict[str, str]]) -> None:
        counts = self._counts
        self._write_bad(more_bad)
        reasons = "; ".join(f"{reason}: {n}" for reason, n in counts.bad.most_common(EXAMPLES))
        first = "\n".join(f"  {_shown(row)}" for row in self._first_bad(more_bad))
        raise UserError(
            f"{counts.num_bad} of {counts.seen} records are bad, more than --max-bad-share = "
            f"{self._job.max_bad_share:g} ({reasons}); {self._job.to / BAD} says which. Repair the "
            "source, name other fields or folders, or allow a larger share: finished parts are "
            f"kept. The first of them:\n{first}"
        )

    def _first_bad(self, more: list[dict[str, str]]) -> list[dict[str, str]]:
        """The first bad record of each of the most frequent reasons."""
        found: dict[str, dict[str, str]] = {}
        for rows in chain((chunk.bad for chunk in self._state.chunks()), [more]):
            for row in rows:
                if row["what"] == "record":
                    found.setdefault(row["reason"], row)
        frequent = self._counts.bad.most_common(EXAMPLES)
        return [found[reason] for reason, _ in frequent if reason in found]

    def _write_bad(self, more: list[dict[str, str]]) -> None:
        with (
            placed(self._scratch, self._job.to / BAD) as path,
            pq.ParquetWriter(path, BAD_SCHEMA) as writer,
        ):
            for rows in chain((chunk.bad for chunk in self._state.chunks()), [more]):
                if rows:
                    writer.write_table(pa.Table.from_pylist(rows, BAD_SCHEMA))

    def _plan(self, looks: Looks) -> Plan:
        """Which rows are held out, with everything counted that all rows together show."""
        counts, ids = self._counts, list(self._staged_ids())
        group, twins = grouped(looks)
        sides = held_out(looks, group, self._job.test_records, self._job.test_share)
        counts.test, counts.pool = int(sides.sum()), int((~sides).sum())
        if counts.pool == 0:
            raise UserError(
                f"none of {counts.test} good records is left for the pool; hold out fewer "
                "(--test-records, --test-share)"
            )
        counts.equal = len(looks) - len(np.unique(looks["pixels"]))
        counts.twins = len(twins)
        pairs = [[ids[one], ids[other]] for one, other in twins]
        counts.twin_examples = pairs[:EXAMPLES]
        if pairs:
            with placed(self._scratch, self._job.to / TWINS) as path:
                rows = [dict(zip(TWINS_SCHEMA.names, pair, strict=True)) for pair in pairs]
                pq.write_table(pa.Table.from_pylist(rows, TWINS_SCHEMA), path)
        bad = (row["record_id"] for chunk in self._state.chunks() for row in chunk.bad)
        counts.questions, counts.unmet_questions, counts.unmet_examples = self._questions.unmet(
            chain(ids, bad), EXAMPLES
        )
        sizes = [count_rows([self._state.staged(n)]) for n in range(self._staged_parts)]
        plan = Plan(counts, sizes, sides)
        self._state.save_plan(plan)
        return plan

    def _finish(self, plan: Plan, looks: Looks) -> Counts:
        """Divide the staged rows; done anew, it writes the same files."""
        Division(self._state, self._scratch, plan, looks).run()
        self._write_bad([])
        self._state.finish(COUNTS.dump_python(plan.counts))
        return plan.counts


def _shown(row: Mapping[str, str]) -> str:
    named = f" (id {row['record_id']!r})" if row["record_id"] else ""
    detail = f": {row['detail']}" if row["detail"] else ""
    return f"{row['where']}{named}: {row['reason']}{detail}"


def _bad_row(where: str, record_id: str, what: str, error: BadRecordError) -> dict[str, str]:
    texts = (where, record_id, what, error.reason, error.detail)
    # A bad text must not make the list of them bad.
    return {
        name: text.encode(errors="backslashreplace").decode()
        for name, text in zip(BAD_SCHEMA.names, texts, strict=True)
    }
