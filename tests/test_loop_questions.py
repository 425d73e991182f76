"""The loop on records without questions, and with a judge from outside."""

import shutil
from pathlib import Path

import pandas as pd

from core.store import Store
from data.tables import read_table, write_table
from tests.llm_server import Server, endpoint, llm_server
from tests.loops import Finished, Runner, play, quick

WITHOUT = {"pool": 12, "test": 5}


def files(finished: Finished, folder: Path, without: dict[str, int]) -> dict[str, str]:
    """Pool and test set as Parquet files, the first records without their questions."""
    store, runner, _ = finished
    refs = {name: result.ref for name, _, result in runner.done}
    data = {"source": "parquet"}
    for name, num in without.items():
        rows = read_table(Store(str(store)).open(refs[name]).parts(), "pool").to_pylist()
        for row in rows[:num]:
            row["questions"] = []
        write_table(folder / f"{name}.parquet", "pool", rows)
        data[name] = str(folder / f"{name}.parquet")
    return data


def questions(server: Server, **changes: object) -> dict[str, object]:
    asked: dict[str, object] = {"endpoint": endpoint(server).model_dump(), "per_record": 4}
    asked |= {"min_f1": 0.6, "max_without": 1.0}
    return asked | changes


def test_records_without_questions_are_left_out_and_counted(
    finished: Finished, tmp_path: Path
) -> None:
    data = files(finished, tmp_path, WITHOUT)
    with llm_server() as server:
        server.knows = False  # so that no question of its own stands
        settings = {"questions": questions(server), "evaluation__judge": "base"}
        runner, _ = play(quick(tmp_path / "store", data=data, benchmarks=[], **settings))
    store = Store(str(tmp_path / "store"))
    done = [(name, store.open(result.ref)) for name, _, result in runner.done]
    results = {name: artifact.manifest["results"] for name, artifact in done}
    asked = [a.manifest["results"]["without"] for name, a in done if name == "questions"]
    assert asked == [12, 5]
    assert results["score-images"]["unscored"] == 12 * 4
    assert results["pair"]["image/dropped/no_questions"] == 12
    assert results["pair"]["image/dropped/no_scores"] == 0
    assert (results["evaluate"]["records"], results["evaluate"]["without_questions"]) == (19, 5)
    [report] = tmp_path.glob("store/reports/*/report.html")
    page = report.read_text(encoding="utf-8")
    assert "19 held-out pictures (5 more have no questions and are left out)" in page
    assert "12 have no questions" in " ".join(page.split())


def test_an_outside_judge_that_sees_what_the_oracle_sees_says_the_same(
    finished: Finished, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(finished[0], tmp_path / "store"))
    with llm_server() as server:
        judged = {
            "evaluation__judge": "endpoint",
            "evaluation__endpoint": endpoint(server, model="tiny-talker").model_dump(),
        }
        runner, _ = play(quick(store, iterations=0, **judged))
        by_oracle, _ = play(quick(store, iterations=0))
    outside, oracle = (answers(store, done) for done in (runner, by_oracle))
    assert outside.drop(columns=["prediction", "right"]).equals(
        oracle.drop(columns=["prediction", "right"])
    )
    # A model takes one of the choices where none is right and the oracle has no answer.
    both = oracle["prediction"] != ""
    assert 0.5 < both.mean() < 1
    assert outside[both].equals(oracle[both])
    assert set(outside[~both]["subject"]) == {"generated"}
    [evaluation] = [result.ref for name, _, result in runner.done if name == "evaluate"]
    results = Store(str(store)).open(evaluation).manifest["results"]
    num_drawn = (outside["subject"] == "generated").sum()
    assert results["endpoint/weighed"] == num_drawn
    assert results["endpoint/requests"] == num_drawn + 1  # the list of models
    assert 0 < results["agreement"] <= 1


def answers(store: Path, done: Runner) -> pd.DataFrame:
    [evaluation] = [result.ref for name, _, result in done.done if name == "evaluate"]
    artifact = Store(str(store)).open(evaluation)
    parts = [artifact.path(name) for name in artifact.names("answers/")]
    return read_table(parts, "eval_answers").to_pandas()
