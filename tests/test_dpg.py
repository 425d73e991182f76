"""DPG-Bench: questions that depend on others."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import benchmark_files as made
import pandas as pd
import pytest

from core.stage import run_stage
from core.store import Store
from data.tables import read_table
from evals.benchmarks.dpg import FIELDS, DpgBench, _verdict, dependent_score
from evals.statistics import Bootstrap
from tasks.base import BASE
from tasks.benchmark import BENCHMARK
from tests.llm_server import endpoint, llm_server
from tests.loops import quick

CHAIN = [{"id": 1, "parents": []}, {"id": 2, "parents": [1]}, {"id": 3, "parents": [2]}]


def file(folder: Path, dependency: str = "1") -> Path:
    rows = [
        ("a", "a red circle", "1", "0", "entity", "Is there a circle?"),
        ("a", "a red circle", "2", dependency, "attribute", "Is the circle red?"),
        ("b", "a dome", "1", "0", "entity", "Is there a dome?"),
    ]
    with open(folder / "dpg_bench.csv", "w", newline="") as out:
        csv.writer(out).writerows([FIELDS, *rows])
    return folder


@pytest.mark.parametrize(
    ("yes", "score"),
    [((True, True, True), 1), ((False, True, True), 0), ((True, False, True), 1 / 3)],
)
def test_a_no_makes_all_that_depends_on_it_a_no(yes: Sequence[bool], score: float) -> None:
    assert dependent_score(CHAIN, dict(zip((1, 2, 3), yes, strict=True))) == pytest.approx(score)


def test_the_first_row_of_the_file_counts(tmp_path: Path) -> None:
    items = DpgBench(file(tmp_path), None, "self").items()
    assert [item.item_id for item in items] == ["a", "b"]
    assert "Is there a circle?" in items[0].answer


def test_what_is_no_yes_is_a_no_and_is_counted() -> None:
    questions = [{"id": 1, "parents": []}, {"id": 2, "parents": []}]
    assert _verdict(questions, ["Yes.", "maybe"]).score == 0.5
    assert _verdict(questions, ["yes", "maybe"]).status == "unclear answer"
    assert _verdict(questions, ["yes", "no"]).status == "answered"


def test_scores_are_means_over_prompts_and_categories_ignore_dependencies(tmp_path: Path) -> None:
    benchmark = DpgBench(file(tmp_path), None, "self")
    rows = []
    for item, said in zip(benchmark.items(), ('["no", "yes"]', '["yes"]'), strict=True):
        score = float(item.item_id == "b")
        made_of = {"unit": item.unit, "group": "", "answer": item.answer}
        rows.append(made_of | {"prediction": said, "score": score})
    found = {
        (f.group, f.name): f.estimate(Bootstrap(100, 0.9)).value
        for f in benchmark.figures(pd.DataFrame(rows))
    }
    assert found == {("all", "score"): 50, ("entity", "yes"): 50, ("attribute", "yes"): 100}


@pytest.mark.parametrize("judge", ["self", made.BASE])
def test_a_model_draws_and_a_judge_answers(judge: str, tmp_path: Path) -> None:
    given = ("--data", str(file(tmp_path)), "--checkpoint", made.BASE, "--judge", judge)
    assert made.run("dpg", tmp_path / "out", *given) == 0
    assert len(made.items(tmp_path / "out")) == 8


def test_a_model_behind_an_api_judges(tmp_path: Path) -> None:
    """Every question about each of the four pictures of a prompt is asked."""
    entry = {"name": "dpg", "folder": str(tmp_path), "limit": None}
    entry |= {"judges": {"judge": "endpoint"}}
    path = file(tmp_path) / "dpg_bench.csv"
    text = path.read_text(encoding="utf-8")
    for asked in ("Is there a circle?", "Is the circle red?", "Is there a dome?"):
        text = text.replace(asked, "is every shape whole?")  # which the server can tell
    path.write_text(text, encoding="utf-8")
    with llm_server() as server:
        judged = endpoint(server).model_dump()
        config = quick(tmp_path / "store", benchmarks=[entry], evaluation__endpoint=judged)
        store = Store(config.store)
        inputs = {"checkpoint": run_stage(BASE, config, store, {}).ref}
        done = store.open(run_stage(BENCHMARK, config, store, inputs).ref)
    rows = read_table(done.path("items.parquet"), "benchmark_items").to_pylist()
    assert len(rows) == 8
    said = [word for row in rows for word in json.loads(row["prediction"])]
    assert len(said) == 12
    assert set(said) <= {"yes", "no", ""}
    assert set(said) & {"yes", "no"}
    assert len(server.bodies) >= 12


def test_a_dependency_on_nothing_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--data", str(file(tmp_path, "7")), "--checkpoint", made.BASE, "--judge", "self")
    assert made.run("dpg", tmp_path / "out", *given) == 2
    assert "proposition 2 depends on 7, which is not there" in capsys.readouterr().err
