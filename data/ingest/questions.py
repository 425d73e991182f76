"""Questions that lie in a file of their own, found by record id."""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core.errors import UserError
from data.ingest.json_files import iter_objects
from data.ingest.raw import Fields

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
            "SELECT question FROM questions WHERE record = ? ORDER BY rowid", (record_id,)
        )
        return [json.loads(text) for (text,) in rows]


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
                f"--questions {path}: object {number} has no id; it has: {', '.join(row)}; name "
                "the field of record ids with --id-field"
            )
        questions = row["questions"] if isinstance(row.get("questions"), list) else [row]
        for question in questions:
            yield str(record_id), json.dumps(question)
