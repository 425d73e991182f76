"""Stage `questions`, with a server that knows a few words and misbehaves, and what comes after."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.artifact import ArtifactRef
from core.config import Config
from core.errors import UserError
from core.stage import run_stage
from core.store import Store
from data.questions import normalised, plain, surplus_yes_no, token_f1, usable_choices
from data.tables import read_table, write_table
from services.endpoint import Client
from services.question_writer import PROMPT_VERSION, QuestionWriter
from tasks.pool import POOL
from tasks.questions import QUESTIONS, check_without
from tests.llm_server import MODEL, Server, endpoint
from tests.stage_inputs import make_config, pool_row, publish

CAPTIONS = ("a red ball", "a cat", "a green table", "fog", "a blue dog", "a yellow ball")
BY_MODEL: dict[str, list[ArtifactRef]] = {"about": [], "base": []}


def config(server: Server | str, **changes: Any) -> Config:
    asked = {"endpoint": endpoint(server, concurrency=2).model_dump(), "per_record": 8}
    asked |= {"min_f1": 0.6, "max_without": 0.5}
    return make_config(questions=asked | changes, sampling__shard_records=2)


def rows(captions: tuple[str, ...] = CAPTIONS) -> list[dict[str, object]]:
    return [pool_row(f"r{i}", caption=text, questions=[]) for i, text in enumerate(captions)]


# Rules of text


@pytest.mark.parametrize(
    ("one", "other"),
    [("The Two  dogs.", "2 dogs"), ("A T-shirt!", "t shirt"), ("", "the"), ("Ça_va", "ça va")],
)
def test_normalised_text_is_what_counts(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other", "f1"),
    [
        ("red", "Red.", 1.0),
        ("a red ball", "red", 2 / 3),
        ("red red", "red", 2 / 3),
        ("red", "blue", 0.0),
        ("", "red", 0.0),
        ("the", "a", 1.0),
    ],
)
def test_f1_of_tokens(one: str, other: str, f1: float) -> None:
    assert token_f1(one, other) == token_f1(other, one) == pytest.approx(f1)


def test_what_a_model_writes_is_put_right() -> None:
    assert usable_choices(["One", "1", "two"], "1") == (["One", "two"], "One")
    assert usable_choices(["one", "1"], "one") is None
    assert usable_choices(["red", "blue"], "green") is None
    assert usable_choices(["...", "blue"], "blue") is None
    assert surplus_yes_no(["yes", "yes", "red", "Yes.", "no"]) == [3]
    assert surplus_yes_no(["yes", "yes", "yes"]) == [1, 2]
    assert surplus_yes_no(["no", "no", "yes"]) == []
    assert surplus_yes_no([]) == []
    assert plain(" a\x00b\n\tc ") == "a b c"


# The stage


def test_records_get_questions_that_their_captions_answer(server: Server, store: Store) -> None:
    pool = publish(store, "pool", [rows()])
    done = store.open(run_stage(QUESTIONS, config(server), store, {"pool": pool, **BY_MODEL}).ref)
    table = read_table(done.parts(), "pool")
    asked = dict(zip(table["record_id"].to_pylist(), table["questions"].to_pylist(), strict=True))
    assert [(q["question"], q["answer"]) for q in asked["r0"]] == [
        ("What color is the ball?", "red"),
        ("Is there a ball?", "yes"),
        ("Is there a zebra?", "no"),
    ]
    assert asked["r3"] == []  # nothing in it that the server knows
    original = read_table(store.open(pool).parts(), "pool")
    assert table.drop_columns("questions").equals(original.drop_columns("questions"))
    results = done.manifest["results"]
    assert results["records"] == results["category/single"] == 6
    assert (results["questions"], results["without"]) == (14, 1)
    assert results["without_first"] == ["r3"]
    assert json.loads(done.path("without.json").read_text()) == ["r3"]
    assert results["dropped/duplicate"] == results["dropped/choices"] == 5
    assert results["dropped/other_reply"] == 5
    assert results["endpoint/requests"] == 1 + len(server.bodies)


def test_everything_written_is_on_record(server: Server, store: Store) -> None:
    own = {"type": "color", "question": "Is there a ball?", "choices": ["a", "b"], "answer": "a"}
    pool = publish(store, "pool", [[pool_row("r0", caption="a red ball", questions=[own])]])
    done = store.open(run_stage(QUESTIONS, config(server), store, {"pool": pool, **BY_MODEL}).ref)
    names = [name for name in done.names() if name.startswith("provenance/")]
    found = read_table([done.path(name) for name in names], "question_provenance").to_pylist()
    # The pool's own question stays, so the one that was written like it does not.
    assert [(row["source"], row["question"], row["reason"]) for row in found] == [
        ("pool", "Is there a ball?", ""),
        ("llm", "What color is the ball?", ""),
        ("llm", "Is there a ball?", "duplicate"),
        ("llm", "Is there a ball !", "duplicate"),
        ("llm", "Is there a zebra?", ""),
        ("llm", "Who owns the ball?", "other_reply"),
        ("llm", "What else is a ball?", "choices"),
    ]
    color = found[1]
    assert (color["model"], color["prompt_version"]) == (MODEL, PROMPT_VERSION)
    assert (color["entity"], color["reply"], color["f1"]) == ("ball", "red", 1.0)
    assert [row["kept"] for row in found] == [row["reason"] == "" for row in found]
    assert found[0]["f1"] == -1.0
    [record] = read_table(done.parts(), "pool").to_pylist()
    assert record["questions"][0] == own


def test_a_second_answer_with_the_choices_must_agree(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(endpoint(server), "judge") as client:
        writer = QuestionWriter(client, per_record=3, min_f1=0.6)
        monkeypatch.setattr(client, "weigh", lambda *_, **__: [0.1, 0.9, 0.0, 0.0])
        found = writer.candidates("r0", "a red ball", [])
    assert [c.reason for c in found] == ["other_choice", "other_choice", "duplicate"]


def test_troubles_on_the_way_change_nothing(server: Server, store: Store, tmp_path: Path) -> None:
    def digest(root: str, faults: list[int | str]) -> str:
        server.faults.extend(faults)
        place = Store(str(tmp_path / root))
        return run_stage(QUESTIONS, config(server), place, {"pool": pool, **BY_MODEL}).ref.digest

    pool = publish(store, "pool", [rows()])
    faults: list[int | str] = [500, "truncated", "drop", 429, "wrong_schema", "page", 503]
    assert digest("calm", []) == digest("stormy", faults)


def test_a_killed_stage_asks_only_for_what_is_missing(server: Server, store: Store) -> None:
    pool = publish(store, "pool", [rows()])
    reference = run_stage(
        QUESTIONS, config(server), Store(store.uri + "-whole"), {"pool": pool, **BY_MODEL}
    )
    needed = len(server.bodies)
    server.bodies.clear()
    server.faults.extend([""] * (needed // 2) + [413])
    with pytest.raises(UserError, match=r"record 'r.': .*fault 413"):
        run_stage(QUESTIONS, config(server), store, {"pool": pool, **BY_MODEL})
    before = len(server.bodies)
    done = run_stage(QUESTIONS, config(server), store, {"pool": pool, **BY_MODEL})
    assert done.ref.digest == reference.ref.digest
    assert 0 < len(server.bodies) - before < needed
    results = store.open(done.ref).manifest["results"]
    assert results["endpoint/completion_tokens"] >= 5 * needed  # those of the killed run too


def test_neither_address_nor_width_makes_it_anew(server: Server, store: Store) -> None:
    pool = publish(store, "pool", [rows()])
    first = run_stage(QUESTIONS, config(server), store, {"pool": pool, **BY_MODEL})
    elsewhere = endpoint("http://localhost:1/v1", concurrency=9, retries=0).model_dump()
    again = run_stage(
        QUESTIONS, config(server, endpoint=elsewhere), store, {"pool": pool, **BY_MODEL}
    )
    assert again.cached
    assert again.ref == first.ref
    with pytest.raises(UserError, match="ConnectError"):  # which says that it is not cached
        run_stage(
            QUESTIONS,
            config(server, endpoint=elsewhere, min_f1=0.7),
            store,
            {"pool": pool, **BY_MODEL},
        )


def test_too_many_records_without_questions_are_refused(server: Server, store: Store) -> None:
    pool = publish(store, "pool", [rows()])
    with pytest.raises(UserError, match=r"1 of 6 records have no question, 'r3' .*max_without"):
        run_stage(QUESTIONS, config(server, max_without=0.1), store, {"pool": pool, **BY_MODEL})
    asked = len(server.bodies)
    done = run_stage(QUESTIONS, config(server, max_without=0.2), store, {"pool": pool, **BY_MODEL})
    assert len(server.bodies) == asked  # the parts were there
    strict = config(server, max_without=0.1).questions
    assert strict is not None
    with pytest.raises(UserError, match=r"max_without = 0\.1"):
        check_without(store.open(done.ref).manifest["results"], strict)


def test_without_the_section_there_is_nothing_to_run(store: Store) -> None:
    pool = publish(store, "pool", [rows()])
    with pytest.raises(UserError, match="questions is null"):
        run_stage(QUESTIONS, make_config(), store, {"pool": pool, **BY_MODEL})


def test_a_pool_may_lack_questions_only_if_they_get_written(
    server: Server, store: Store, tmp_path: Path
) -> None:
    write_table(tmp_path / "pool.parquet", "pool", rows())
    data = {"source": "parquet", "pool": str(tmp_path / "pool.parquet"), "test": "unused"}
    lacking = make_config(data=data, evaluation__judge="base")
    with pytest.raises(UserError, match=r"has no questions; .*config section questions"):
        run_stage(POOL, lacking, store, {})
    asked = config(server).questions
    assert run_stage(POOL, lacking.model_copy(update={"questions": asked}), store, {})
