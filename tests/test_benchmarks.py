"""Benchmarks by their official rules, on answers with scores that were worked out by hand."""

from pathlib import Path

import benchmark_files as made
import numpy as np
import pytest

from evals.benchmarks.pope import clarity, yes_or_no
from evals.statistics import bootstrap_mean, bootstrap_sums


@pytest.mark.parametrize(
    ("reply", "said", "status"),
    [
        ("Yes", "yes", "answered"),
        ("No, there is none", "no", "answered"),
        ("There is not. Yes.", "no", "answered"),  # only the first sentence counts
        ("NO", "yes", "answered"),  # as the published script takes it
        ("", "yes", "empty answer"),
        ("a cat", "yes", "unclear answer"),
    ],
)
def test_pope_takes_replies_as_the_published_script(reply: str, said: str, status: str) -> None:
    assert (yes_or_no(reply), clarity(reply)) == (said, status)


def test_pope_by_hand(tmp_path: Path) -> None:
    """Random: one TP, FN, TN, FP each (empty is yes); popular: all right; last: no."""
    answers = {"random/1": "yes", "random/2": "", "random/3": "no", "random/4": "No."}
    answers |= {f"popular/{i}": ("yes", "no")[i % 2 == 0] for i in range(1, 5)}
    answers |= {f"adversarial/{i}": "no" for i in range(1, 5)}
    found = made.scored("pope", made.pope(tmp_path), answers, tmp_path / "out")
    assert {name: found["random", name] for name in ("accuracy", "precision", "recall", "f1")} == {
        "accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5,
    }  # fmt: skip
    assert found["popular", "f1"] == 1.0
    assert found["adversarial", "recall"] == 0.0
    assert found["adversarial", "yes_ratio"] == 0.0
    assert found["all", "accuracy"] == pytest.approx((0.5 + 1.0 + 0.5) / 3)
    assert found["all", "f1"] == pytest.approx((0.5 + 1.0 + 0.0) / 3)
    assert found["all", "items/empty answer"] == 1


def test_answers_that_are_missing_or_to_no_item_are_named_and_in_no_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {f"{split}/1": "yes" for split in ("random", "popular", "adversarial")}
    answers["random/99"] = "no"
    found = made.scored("pope", made.pope(tmp_path), answers, tmp_path / "out")
    assert found["all", "accuracy"] == 1.0
    assert found["all", "items/no answer"] == 9
    shown = capsys.readouterr().err
    assert "1 answers are to no item and are left out, such as 'random/99'" in shown
    assert "9 of 12 items: no answer (not scored), such as 'random/2'" in shown


def test_a_model_is_asked_part_by_part_and_a_lost_part_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture that is not there is named and its questions are in no figure."""
    data, to = tmp_path, tmp_path / "out"
    made.pope(data)
    (data / "val2014/b.jpg").unlink()
    given = ("--data", str(data), "--checkpoint", made.BASE)
    assert made.run("pope", to, *given) == 0
    shown = capsys.readouterr()
    assert "6 of 12 items: no image (not scored)" in shown.err
    before = made.items(to)
    assert [row["status"] == "no image" for row in before] == [False, False, True, True] * 3
    assert all("b.jpg" in row["reply"] for row in before if row["status"] == "no image")
    for path in (to / "manifest.json", to / "items.parquet", to / "parts/part-00000.parquet"):
        path.unlink()
    assert made.run("pope", to, *given) == 0
    assert capsys.readouterr().out == shown.out
    assert made.items(to) == before
    # Without any picture there is no figure.
    (data / "val2014/a.jpg").unlink()
    assert made.run("pope", tmp_path / "none", *given) == 2
    assert "none of its 12 items could be scored" in capsys.readouterr().err


def test_files_that_are_not_there_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        made.run("pope", tmp_path / "out", "--data", str(tmp_path), "--checkpoint", made.BASE) == 2
    )
    assert "has no file *pope_random.json" in capsys.readouterr().err


def test_shapes_pope_asks_about_as_much_that_is_there_as_is_not() -> None:
    from evals.benchmarks.shapes import ShapesPope

    benchmark = ShapesPope("validation", 12)
    items = benchmark.items()
    assert items == benchmark.items()
    assert sum(item.answer == "yes" for item in items) * 2 == len(items)
    for item in items:
        color, shape = item.item_id.rsplit("/", 1)[1].split()
        scene = benchmark._records[item.image].scene
        there = any((o.color, o.shape) == (color, shape) for o in scene.objects)
        assert there == (item.answer == "yes")


def test_bootstrap_of_sums_is_that_of_a_mean() -> None:
    values_R = np.random.default_rng(0).random(50)
    settings = {"samples": 400, "confidence": 0.9, "seed": 3}
    columns_RC = np.stack([values_R, np.ones(50)], 1)
    found = bootstrap_sums([columns_RC], lambda sums: sums[0][:, 0] / sums[0][:, 1], **settings)
    expected = bootstrap_mean(values_R, **settings)
    assert found.count == expected.count
    for name in ("value", "low", "high"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name))
