"""Two results side by side: paired changes by hand, and what makes results not comparable."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark_files as made
import numpy as np
import pytest
from stage_inputs import QUICK

from core.errors import UserError
from data.results import RESULTS, read_result, results_text
from data.shapes.records import make_records
from data.tables import read_table, write_table
from evals.benchmarks.base import Item, item_row
from evals.benchmarks.geneval2 import verdict
from evals.comparison import compare
from evals.judges.first_token import Mass
from evals.statistics import Bootstrap
from tests.commands import gap, hermesflow

SPLITS = ("random", "popular", "adversarial")
BASE = "models/assets/shapes/base"


def answered(data: Path, to: Path, **changes: str) -> Path:
    """Replies that are all right, but for changes by number of the question in every split."""
    right = {1: "yes", 2: "no", 3: "yes", 4: "no"} | {int(k[1:]): v for k, v in changes.items()}
    made.scored("pope", data, {f"{s}/{n}": r for s in SPLITS for n, r in right.items() if r}, to)
    return to


def test_changes_are_paired_by_item(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of four questions the old result has one wrong, which the new one has right, and lacks one
    of those that are left: two of three pairs are the same, and one is better."""
    data = made.pope(tmp_path)
    old = answered(data, tmp_path / "old", q2="yes")
    new = answered(data, tmp_path / "new", q4="")
    found = compare(old, new)
    changes = {(one.group, one.name): one for one in found.changes}
    accuracy = changes["random", "accuracy"]
    assert accuracy.before == pytest.approx(2 / 3)
    assert accuracy.after == 1
    assert accuracy.change.value == pytest.approx(1 / 3)
    assert accuracy.change.low <= accuracy.change.value <= accuracy.change.high
    assert len(found.items) == 9
    assert found.counts == (
        f"9 items that both have: 3 better, 0 worse, 6 the same; left out: 3 that "
        f"{tmp_path / 'old.jsonl'} alone has whole"
    )
    capsys.readouterr()
    to = tmp_path / "items.csv"
    assert hermesflow(["compare", str(old), str(new), "--to", str(to)]) == 0
    assert "3 better, 0 worse" in capsys.readouterr().out
    with open(to, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sum(float(row["after"]) - float(row["before"]) for row in rows) == 3


def test_a_result_compared_with_itself_has_not_changed(tmp_path: Path) -> None:
    one = answered(made.pope(tmp_path), tmp_path / "one", q1="no")
    found = compare(one, one)
    assert all(c.change.value == c.change.low == c.change.high == 0 for c in found.changes)


def test_the_paired_interval_is_that_of_differences_by_picture(tmp_path: Path) -> None:
    """Against a bootstrap of the difference of each picture, written down anew."""
    data = made.pope(tmp_path)
    old, new = answered(data, tmp_path / "old", q2="yes"), answered(data, tmp_path / "new")
    changes = {(one.group, one.name): one for one in compare(old, new).changes}
    recipe = read_result(old).recipe["evaluation"]
    bootstrap = Bootstrap(recipe["bootstrap_samples"], recipe["confidence"])
    by_picture = bootstrap.mean(np.array([0.5, 0.0]))  # of picture a, one of two; of b, none
    found = changes["random", "accuracy"].change
    assert (found.value, found.low, found.high) == pytest.approx(
        (by_picture.value, by_picture.low, by_picture.high)
    )


def changed(folder: Path, change: Callable[[Any], None]) -> Path:
    document = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    change(document)
    (folder / RESULTS).write_text(json.dumps(document), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["recipe"].update(benchmark="gqa"), "benchmark was 'pope' and is 'gqa'"),
        (lambda d: d["recipe"].update(files="0"), "files was"),
        (lambda d: d["recipe"]["rules"].update(cue="?"), "rules.cue was"),
        (lambda d: d["recipe"]["rules"].update(judge="x"), "rules.judge was None and is 'x'"),
        (lambda d: d.update(format=9), "has format 9"),
        (lambda d: d.pop("recipe"), "is no result"),
    ],
)
def test_what_differs_is_named(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    data = made.pope(tmp_path)
    old, new = answered(data, tmp_path / "old"), answered(data, tmp_path / "new")
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        compare(old, changed(new, change))


def test_other_items_are_not_compared(tmp_path: Path) -> None:
    """Files that differ have another hash; if that were not so, the texts of the items tell."""
    data = made.pope(tmp_path)
    old = answered(data, tmp_path / "old")
    for file in data.glob("coco_pope_*.json"):
        file.write_text(file.read_text("utf-8").replace("dog", "fox"), encoding="utf-8")
    new = answered(data, tmp_path / "new")
    with pytest.raises(UserError, match="not comparable: files was"):
        compare(old, new)
    files = read_result(old).recipe["files"]
    changed(new, lambda document: document["recipe"].update(files=files))
    with pytest.raises(UserError, match=r"text of item '.*' differs"):
        compare(old, new)


def test_systems_that_judged_themselves_are_not_compared(tmp_path: Path) -> None:
    data = made.pope(tmp_path)
    old, new = answered(data, tmp_path / "old"), answered(data, tmp_path / "new", q1="no")
    for folder in (old, new):
        changed(folder, lambda document: document["recipe"]["rules"].update(judge="self"))
    with pytest.raises(UserError, match="each system has judged its own pictures"):
        compare(old, new)
    assert compare(old, old).changes


def test_folders_without_a_result_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no results\.json"):
        compare(tmp_path, tmp_path)


def test_gaps_are_compared_by_record(tmp_path: Path) -> None:
    pool = tmp_path / "pool.parquet"
    write_table(pool, "pool", [record.row() for record in make_records(6, "validation", 0)])
    for name, judge in (("a", "oracle"), ("b", "oracle"), ("c", BASE)):
        given = ["--pool", str(pool), "--to", str(tmp_path / name), "--config", str(QUICK)]
        assert gap([*given, "--checkpoint", BASE, "--judge", judge]) == 0
    found = compare(tmp_path / "a", tmp_path / "b")
    assert {one.name for one in found.changes} >= {"understanding", "generation", "gap"}
    assert all(one.change.value == 0 for one in found.changes)
    metrics = read_table(tmp_path / "a/metrics.parquet", "metrics").to_pylist()
    u = next(r["value"] for r in metrics if (r["name"], r["group"]) == ("understanding", "all"))
    assert next(c.before for c in found.changes if c.name == "understanding") == pytest.approx(u)
    with pytest.raises(UserError, match=r"judge was 'oracle'|judged by"):
        compare(tmp_path / "a", tmp_path / "c")


def told(folder: Path, first: list[float | None], second: list[float | None]) -> Path:
    """A result of GenEval 2 on two prompts: probabilities of an object and an attribute."""
    asked = [{"question": "Is it?", "answer": "Yes", "skill": s} for s in ("object", "attribute")]
    rows = [
        item_row(
            Item(name, "2 atoms", name, name, json.dumps(asked)),
            "",
            verdict([None if p is None else Mass(p, p) for p in values]),
        )
        for name, values in (("a", first), ("b", second))
    ]
    folder.mkdir()
    write_table(folder / "items.parquet", "benchmark_items", rows)
    recipe = {"evaluation": {"bootstrap_samples": 50, "confidence": 0.9}, "system": folder.name}
    (folder / RESULTS).write_text(results_text("geneval2", folder.name, recipe, [], 2), "utf-8")
    return folder


def test_what_was_answered_in_part_is_no_pair(tmp_path: Path) -> None:
    """Another atom of each prompt lacks an answer: rows of atoms are as many, of other prompts."""
    old = told(tmp_path / "old", [0.5, 0.5], [None, 1.0])
    new = told(tmp_path / "new", [0.5, 0.7], [0.2, 1.0])
    found = compare(old, new)
    changes = {(one.group, one.name): one.change.value for one in found.changes}
    assert found.items["item_id"].tolist() == ["a"]
    assert changes["object", "soft_tifa_am"] == 0
    assert changes["attribute", "soft_tifa_am"] == pytest.approx(20)
    assert "1 that new alone has whole" in found.counts
    crossed = told(tmp_path / "crossed", [None, 0.7], [0.2, 1.0])
    with pytest.raises(UserError, match="no item was scored in both"):
        compare(old, crossed)
