"""Questions that lie in a file of their own, found by record id."""

import json
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core.errors import UserError
from data.ingest.json_files import iter_objects
from data.ingest.raw import WHOLE, Fields, id_text


class ById:
    """JSON documents by the ids of records, on disk, since there may be millions."""

    def __init__(self, database: sqlite3.Connection, rows: Iterable[tuple[str, object]]) -> None:
        self._database = database
        # Nothing needs to outlive a crash.
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("PRAGMA synchronous = OFF")
        database.execute("CREATE TABLE documents (record TEXT, document TEXT)")
        texts = ((record_id, json.dumps(document)) for record_id, document in rows)
        database.executemany("INSERT INTO documents VALUES (?, ?)", texts)
        database.execute("CREATE INDEX by_record ON documents (record)")

    def of(self, record_id: str) -> list[Any]:
        """The documents of a record in their order."""
        found = "SELECT document FROM documents WHERE record = ? ORDER BY rowid"
        return [json.loads(text) for (text,) in self._database.execute(found, (record_id,))]


@contextmanager
def on_disk() -> Iterator[sqlite3.Connection]:
    """An empty database for a while."""
    with (
        TemporaryDirectory() as folder,
        closing(sqlite3.connect(Path(folder) / "documents.db")) as database,
    ):
        yield database


class QuestionFile(ById):
    """Questions of a JSON file by the id of their record.

    An object is one question (`vqa_data.json` of the published implementation: id, question,
    choices, answer, element_type) or has a list of them (id, questions).
    """

    def of(self, record_id: str) -> list[Any]:
        """The questions of a record in the order of the file."""
        return super().of(_key(record_id))

    def unmet(self, record_ids: Iterable[str], examples: int) -> tuple[int, int, list[str]]:
        """How many questions there are, how many are of none of these records, and some ids."""
        database = self._database
        database.execute("CREATE TEMP TABLE met (record TEXT PRIMARY KEY)")
        known = ((_key(record_id),) for record_id in record_ids)
        database.executemany("INSERT OR IGNORE INTO met VALUES (?)", known)
        apart = "FROM documents WHERE record NOT IN (SELECT record FROM met)"
        (total,) = database.execute("SELECT COUNT(*) FROM documents").fetchone()
        (unmet,) = database.execute(f"SELECT COUNT(*) {apart}").fetchone()
        some = database.execute(
            f"SELECT DISTINCT record {apart} ORDER BY record LIMIT ?", (examples,)
        )
        names = [name for (name,) in some]
        database.execute("DROP TABLE met")
        return total, unmet, names


@contextmanager
def open_questions(path: Path | None, fields: Fields) -> Iterator[QuestionFile]:
    """Questions of a file, none without one; UserError if an object has no id."""
    with on_disk() as database:
        yield QuestionFile(database, _rows(path, fields))


def _rows(path: Path | None, fields: Fields) -> Iterator[tuple[str, object]]:
    if path is None:
        return
    if not path.is_file():
        raise UserError(f"--questions {path} is no file; give a JSON file of questions")
    for number, row in enumerate(iter_objects(path)):
        record_id = fields.get(row, "id")
        if record_id is None:
            raise UserError(
                f"--questions {path}: object {number} has no id: {fields.lack(row, 'id')}; name "
                "the field of record ids with --id-field"
            )
        questions = row["questions"] if isinstance(row.get("questions"), list) else [row]
        for question in questions:
            yield _key(id_text(record_id)), question


def _key(record_id: str) -> str:
    """What an id is found by: 1.0 is 1, and the forms of a letter are one."""
    text = unicodedata.normalize("NFC", record_id.strip())
    return text.partition(".")[0] if WHOLE.fullmatch(text) else text
