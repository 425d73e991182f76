"""Questions that lie in a file of their own, found by record id."""

import json
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core.errors import UserError
from data.ingest.json_files import iter_objects
from data.ingest.raw import WHOLE, Fields, id_text

Lookup = Mapping[str, Any]


class QuestionFile:
    """Objects of a JSON file by the id of their record, on disk, since there may be millions.

    An object is one question (`vqa_data.json` of the published implementation: id, question,
    choices, answer, element_type) or has a list of them (id, questions).
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def of(self, record_id: str) -> list[object]:
        """The questions of a record in the order of the file."""
        rows = self._database.execute(
            "SELECT question FROM questions WHERE record = ? ORDER BY rowid", (_key(record_id),)
        )
        return [json.loads(text) for (text,) in rows]

    def unmet(self, record_ids: Iterable[str], examples: int) -> tuple[int, int, list[str]]:
        """How many questions there are, how many are of none of these records, and some ids."""
        database = self._database
        database.execute("CREATE TEMP TABLE met (record TEXT PRIMARY KEY)")
        known = ((_key(record_id),) for record_id in record_ids)
        database.executemany("INSERT OR IGNORE INTO met VALUES (?)", known)
        apart = "FROM questions WHERE record NOT IN (SELECT record FROM met)"
        (total,) = database.execute("SELECT COUNT(*) FROM questions").fetchone()
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
    with TemporaryDirectory() as folder:
        database = sqlite3.connect(Path(folder) / "questions.db")
        try:
            # Nothing needs to outlive a crash.
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("PRAGMA synchronous = OFF")
            database.execute("CREATE TABLE questions (record TEXT, question TEXT)")
            database.executemany("INSERT INTO questions VALUES (?, ?)", _rows(path, fields))
            database.execute("CREATE INDEX by_record ON questions (record)")
            yield QuestionFile(database)
        finally:
            database.close()


def _rows(path: Path | None, fields: Fields) -> Iterator[tuple[str, str]]:
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
            yield _key(id_text(record_id)), json.dumps(question)


def _key(record_id: str) -> str:
    """What an id is found by: 1.0 is 1, and the forms of a letter are one."""
    text = unicodedata.normalize("NFC", record_id.strip())
    return text.partition(".")[0] if WHOLE.fullmatch(text) else text
