"""Scores of an evaluation, by hand, and the command that measures any checkpoint on any pool."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stage_inputs import QUICK

from data.shapes.records import make_records
from data.tables import read_table, write_table
from evals.checkpoints import open_checkpoint
from evals.evaluation import OF_TWO_MINDS
from evals.item_response import item_gap
from evals.scores import record_scores, summarize
from evals.statistics import Bootstrap
from tests.commands import gap
from tests.llm_server import MODEL, endpoint, llm_server

COLUMNS = ["record_id", "subject", "sample", "type", "question", "right", "chance", "status"]
PUBLISHED_GAPS = [0.491, 0.637]
"""Of the shares in the test below, by a fit of the published model with its prior."""


def answers() -> pd.DataFrame:
    """Two records with two questions each, one real image and two generated ones."""
    given = [
        ("a", "real", 0, "color", (1.0, 0.0)),
        ("a", "generated", 0, "color", (1.0, 1.0)),
        ("a", "generated", 1, "color", (0.0, 1.0)),
        ("a", "self", 0, "color", (1.0, 0.0)),
        ("a", "self", 1, "color", (1.0, 0.0)),
        ("b", "real", 0, "size", (1.0, 1.0)),
        ("b", "generated", 0, "size", (0.0, 0.0)),
        ("b", "generated", 1, "size", (0.0, 1.0)),
        ("b", "self", 0, "size", (1.0, 1.0)),
        ("b", "self", 1, "size", (0.0, 1.0)),
    ]
    rows = [
        (*image, question, right, 0.25, "answered")
        for *image, rights in given
        for question, right in zip(("first?", "second?"), rights, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_scores_of_a_record() -> None:
    scores = record_scores(answers())
    assert scores.loc["a"].to_dict() == {
        "understanding": 0.5,
        "generation": 0.75,
        "chance": 0.25,
        "self_score": 0.5,
        "agreement": 0.25,  # both verdicts are alike for the first question about image 0 only
        "all_right": 0.5,  # one of its two images has no wrong answer
        # Its own answers reject both images, of which the judge finds the first one right.
        "non_unification": 1.0,
        "weak_generation": 0.5,
        "misunderstanding": 0.5,
    }
    assert scores.loc["b"].to_dict() == {
        "understanding": 1.0,
        "generation": 0.25,
        "chance": 0.25,
        "self_score": 0.75,
        "agreement": 0.5,
        "all_right": 0.0,
        "non_unification": 0.5,
        "weak_generation": 0.5,
        "misunderstanding": 0.0,
    }


def test_a_drawing_that_one_of_two_has_not_answered_about_is_in_no_score_of_both() -> None:
    """So that weak generation and misunderstanding still add up to what is rejected."""
    rows = answers()
    rows.loc[(rows["subject"] == "self") & (rows["sample"] == 1), "status"] = "empty"
    scores = record_scores(rows)
    assert scores["non_unification"].tolist() == [1.0, 0.0]
    assert scores["weak_generation"].tolist() == [0.0, 0.0]
    assert scores["misunderstanding"].tolist() == [1.0, 0.0]


def items(*outcomes: tuple[str, float, float]) -> pd.DataFrame:
    """A record for each (type, right when read, right when drawn)."""
    rows = [
        (str(number), subject, 0, kind, "q", right, 0.5, "answered")
        for number, (kind, *rights) in enumerate(outcomes)
        for subject, right in zip(("real", "generated"), rights, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def published_gap(both: int, read: int, drawn: int, neither: int) -> float:
    """As the published evaluation: abilities, their bounded difference, then the two shifts."""
    total = both + read + drawn + neither
    odds = [(right + 0.5) / (total - right + 0.5) for right in (both + read, both + drawn)]
    difference = abs(math.log(odds[0]) - math.log(odds[1]))
    bounded = difference / (1 + difference)
    shifted = math.log(bounded / (1 - bounded)) + 2.7 * neither / total - 1.05 * both / total
    return 1 / (1 + math.exp(-shifted))


def test_the_item_response_gap_is_that_of_the_published_evaluation() -> None:
    counts = {"color": (600, 300, 50, 50), "size": (300, 500, 100, 100)}
    ways = ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0))
    rows = items(
        *(
            (kind, *way)
            for kind, numbers in counts.items()
            for way, number in zip(ways, numbers, strict=True)
            for _ in range(number)
        )
    )
    found = item_gap(rows, Bootstrap(200, 0.95))
    assert found is not None
    wanted = [published_gap(*one) for one in counts.values()]
    assert found.value == pytest.approx(sum(wanted) / 2)
    assert wanted == pytest.approx(PUBLISHED_GAPS, abs=0.01)
    assert found.low < found.value < found.high
    assert found.high - found.low < 0.2
    assert found.count == 2000


def test_the_item_response_gap_goes_by_the_record_and_is_absent_without_both_directions() -> None:
    rows = answers()
    found = item_gap(rows, Bootstrap(100, 0.95))
    assert found is not None
    # Of record a both drawings, each with both questions.
    wanted = (published_gap(1, 1, 2, 0), published_gap(1, 3, 0, 0))
    assert found.value == pytest.approx(sum(wanted) / 2)
    assert found.count == 2
    assert item_gap(rows[rows["subject"] != "real"], Bootstrap(100, 0.95)) is None


def test_agreement_goes_by_image_and_question_whatever_the_order() -> None:
    shuffled = answers().sample(frac=1, random_state=1)
    assert record_scores(shuffled).equals(record_scores(answers()))


def test_summary_has_groups_and_a_gap_of_their_means() -> None:
    records = record_scores(answers()).reset_index()
    records["category"], records["composition"] = ["x", "y"], ["seen", "seen"]
    rows = summarize(records, answers(), Bootstrap(100, 0.95))
    values = {(row["name"], row["group"]): row["value"] for row in rows}
    assert values["gap", "all"] == pytest.approx(0.75 - 0.5)
    assert values["non_unification", "all"] == 0.75
    assert values["weak_generation", "category/x"] == 0.5
    assert 0 < values["item_gap", "all"] < 1
    alone = summarize(records, answers(), Bootstrap(100, 0.95), OF_TWO_MINDS)
    known = {row["name"] for row in alone}
    assert "non_unification" in known
    assert not known & {"agreement", "weak_generation", "misunderstanding"}
    assert values["generation", "category/x"] == 0.75
    assert values["understanding", "type/size"] == 1.0
    assert values["agreement", "type/size"] == 0.5
    assert values["self_score", "all"] == pytest.approx(0.625)
    assert values["generation", "composition/seen"] == 0.5


def test_bootstrap_interval_agrees_with_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(size=2000)
    estimate = Bootstrap(4000, 0.95).mean(values)
    half = 1.96 * values.std() / np.sqrt(2000)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=0.1)


def test_paired_difference_takes_out_the_spread_between_records() -> None:
    before = np.random.default_rng(2).normal(scale=10, size=300)
    change = Bootstrap(200, 0.95).mean(before + 0.1 - before)
    assert change.low == pytest.approx(0.1)
    assert change.high == pytest.approx(0.1)


BASE = "models/assets/shapes/base"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "pool.parquet"
    write_table(path, "pool", [record.row() for record in make_records(13, "validation", 0)])
    return path


def measure(pool: Path, to: Path, *more: str) -> int:
    given = ["--checkpoint", BASE, "--pool", str(pool), "--to", str(to), "--config", str(QUICK)]
    return gap([*given, *more])


def test_a_measurement_that_lost_a_part_ends_with_the_same_tables(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And it does the lost part alone; another checkpoint or judge needs another folder."""
    to = tmp_path / "out"
    assert measure(pool, to) == 0
    table = capsys.readouterr().out
    assert "gap" in table
    assert "type/color" in table
    assert "judged by the pixel oracle" in table
    metrics, answers = (to / name for name in ("metrics.parquet", "answers"))
    before = read_table(metrics, "metrics")
    parts = sorted(answers.iterdir())
    kept, lost = parts
    stamp = kept.stat().st_mtime_ns
    for path in (to / "manifest.json", metrics, lost):
        path.unlink()
    assert measure(pool, to) == 0
    assert capsys.readouterr().out == table
    assert read_table(metrics, "metrics").equals(before)
    assert lost.exists()
    assert kept.stat().st_mtime_ns == stamp
    assert measure(pool, to, "--judge", BASE) == 2
    assert "judge was 'oracle'" in capsys.readouterr().err


def test_a_checkpoint_that_is_none_and_a_pool_without_questions_are_refused(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure(pool, tmp_path / "a", "--checkpoint", str(tmp_path)) == 2
    assert "is no checkpoint" in capsys.readouterr().err
    rows = read_table(pool, "pool").to_pylist()
    bare = tmp_path / "bare.parquet"
    write_table(bare, "pool", [{**row, "questions": []} for row in rows])
    assert measure(bare, tmp_path / "b") == 2
    assert "it has no questions" in capsys.readouterr().err


def test_digests_of_checkpoints_follow_their_content(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    one = open_checkpoint(tmp_path).digest
    (tmp_path / "weights").write_text("1")
    assert open_checkpoint(tmp_path).digest != one


def test_another_model_of_a_server_does_not_go_on_with_the_answers_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else figures of one judge would be shown under the name of another."""
    pool, to = tmp_path / "pool.parquet", tmp_path / "out"
    write_table(pool, "pool", [record.row() for record in make_records(2, "validation", 0)])
    with llm_server() as server:
        for model, code in ((MODEL, False), ("another", True)):
            document = endpoint(server).model_dump() | {"model": model}
            told = {"evaluation": {"judge": "endpoint", "endpoint": document}}
            config = tmp_path / f"{model}.yaml"
            config.write_text(json.dumps({"extends": str(QUICK), **told}), encoding="utf-8")
            given = ["--pool", str(pool), "--to", str(to), "--config", str(config)]
            assert (gap([*given, "--checkpoint", BASE]) != 0) == code
    assert "judge was" in capsys.readouterr().err
