"""Replies to a pool's questions from a file stand for the side of `gap` that reads."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image
from stage_inputs import QUICK

from core.errors import UserError
from data.questions import QuestionRow
from data.results import read_result
from data.shapes.records import make_records
from data.tables import read_table, write_table
from evals.systems.answer_file import NO_REPLY, AnswerFile, answer_of
from services.replies import EMPTY, UNUSABLE
from tests.commands import gap

RECORDS = make_records(4, "validation", 0)
ROWS = [record.row() for record in RECORDS]
COLOR: QuestionRow = {
    "type": "color", "question": "What color?", "answer": "blue",
    "choices": ["red", "blue", "green"],
}  # fmt: skip
Line = Mapping[str, object]


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    path = tmp_path / "pool.parquet"
    write_table(path, "pool", ROWS)
    return path


def replies(row: Mapping[str, object], *, right: bool = True) -> list[Line]:
    """A reply to each question of a record."""
    return [
        {
            "record_id": row["record_id"],
            "question": asked["question"],
            "reply": next(c for c in asked["choices"] if (c == asked["answer"]) == right),
        }
        for asked in row["questions"]  # type: ignore[attr-defined]
    ]


def written(path: Path, lines: Sequence[Line]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def measured(pool: Path, to: Path, *given: str) -> dict[str, float]:
    common = ["--pool", str(pool), "--to", str(to), "--config", str(QUICK), "--judge", "oracle"]
    assert gap([*common, *given]) == 0
    rows = read_table(to / "metrics.parquet", "metrics").to_pylist()
    return {row["name"]: row["value"] for row in rows if row["group"] == "all"}


@pytest.mark.parametrize(
    ("reply", "prediction", "probability", "status"),
    [
        ("blue", "blue", 1.0, "answered"),
        ("B", "blue", 1.0, "answered"),
        ("b) blue.", "blue", 1.0, "answered"),
        ("It is red.", "red", 0.0, "answered"),
        ("<think>Red? No.</think> Blue", "blue", 1.0, "answered"),
        ("red or blue", "", 0.0, UNUSABLE),
        ("it is not blue", "", 0.0, UNUSABLE),
        ("purple", "", 0.0, UNUSABLE),
        ("  \n", "", 0.0, EMPTY),
        (None, "", 0.0, NO_REPLY),
    ],
)
def test_a_reply_is_the_choice_that_it_names(
    reply: str | None, prediction: str, probability: float, status: str
) -> None:
    found = answer_of(COLOR, reply)
    assert (found.prediction, found.probability, found.status) == (prediction, probability, status)


def test_u_is_that_of_the_replies_and_what_has_none_is_not_scored(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of four records one is wrong and one without replies: U is 2 of 3, not 2 of 4."""
    lines = [*replies(ROWS[0]), *replies(ROWS[1]), *replies(ROWS[2], right=False)]
    stray = {"record_id": "elsewhere", "question": "Who?", "reply": "me"}
    file = written(tmp_path / "replies.jsonl", [*lines, stray])
    found = measured(pool, tmp_path / "out", "--answers", str(file), "--name", "Closed")
    asked = [len(row["questions"]) for row in ROWS]
    assert found["understanding"] == pytest.approx(2 / 3)
    assert "generation" not in found
    assert "gap" not in found
    assert (found["items/answered"], found["items/no answer"]) == (3, 1)
    rows = read_table(tmp_path / "out/answers/part-00000.parquet", "eval_answers").to_pylist()
    assert sum(row["status"] == NO_REPLY for row in rows) == asked[3]
    assert "1 of" in (said := capsys.readouterr().err)
    assert "('elsewhere', 'Who?')" in said
    result = read_result(tmp_path / "out")
    assert (result.system, result.lost) == ("Closed", 1)
    assert result.recipe["system"]["reads"]["kind"] == "answers"


def test_the_gap_of_replies_and_pictures(pool: Path, tmp_path: Path) -> None:
    for number, record in enumerate(RECORDS):
        (tmp_path / f"drawn/{number}").mkdir(parents=True)
        for sample in range(4):
            Image.fromarray(record.image()).save(tmp_path / f"drawn/{number}/{sample}.png")
    lines = [line for k, row in enumerate(ROWS) for line in replies(row, right=k > 0)]
    file = written(tmp_path / "replies.jsonl", lines)
    given = ("--answers", str(file), "--pictures", str(tmp_path / "drawn"))
    found = measured(pool, tmp_path / "out", *given)
    assert found["understanding"] == pytest.approx(0.75)
    assert found["generation"] == 1
    assert found["gap"] == pytest.approx(-0.25)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "0 replies, none to a question of the pool"),
        ([{"record_id": "x", "question": "Who?", "reply": "me"}], "none to a question of the pool"),
        ([*replies(ROWS[0]), replies(ROWS[0])[0]], "is answered twice"),
        ([{**replies(ROWS[0])[0], "reply": None}], "reply is None, and no text"),
        ([{**replies(ROWS[0])[0], "record_id": 3}], "record_id is 3, and no text"),
        ([{"record_id": "x", "reply": "red"}], "has no field 'question'"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(
    pool: Path, tmp_path: Path, lines: Sequence[Line], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        AnswerFile(written(tmp_path / "replies.jsonl", lines), [pool])


def test_a_question_that_is_asked_twice_with_other_choices_is_refused(tmp_path: Path) -> None:
    """A reply by its text could be to either."""
    other = {**COLOR, "choices": ["blue", "green"]}
    write_table(tmp_path / "pool.parquet", "pool", [{**ROWS[0], "questions": [COLOR, other]}])
    line = {"record_id": ROWS[0]["record_id"], "question": COLOR["question"], "reply": "B"}
    with pytest.raises(UserError, match="twice with different choices"):
        AnswerFile(written(tmp_path / "replies.jsonl", [line]), [tmp_path / "pool.parquet"])


@pytest.mark.parametrize(
    "given",
    [
        ("--only", "reading"),
        ("--transformers", "x"),
        ("--pictures", "x", "--diffusers", "y"),
        ("--answers", "missing.jsonl"),
    ],
)
def test_what_reads_beside_a_file_of_replies_is_refused(
    pool: Path, tmp_path: Path, given: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "replies.jsonl", replies(ROWS[0]))
    common = ["--pool", str(pool), "--to", str(tmp_path / "out"), "--config", str(QUICK)]
    assert gap([*common, "--judge", "oracle", "--answers", str(file), *given]) != 0
    assert "--answers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
