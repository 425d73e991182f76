"""Benchmarks by their official rules, on answers with scores that were worked out by hand."""

import json
import math
import shutil
from pathlib import Path

import benchmark_files as made
import numpy as np
import pytest

from evals.benchmarks.cider import cider
from evals.benchmarks.mme import PERCEPTION
from evals.benchmarks.mmmu_parsing import open_answer_is_right, parse_open
from evals.benchmarks.pope import clarity, yes_or_no
from evals.statistics import Bootstrap


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


@pytest.mark.parametrize("source", ["aokvqa", "gqa"])
@pytest.mark.parametrize("middle", ["pope", "pope_seem"])
def test_pope_of_other_collections_is_a_list(tmp_path: Path, source: str, middle: str) -> None:
    made.pope(tmp_path)
    for path in sorted(tmp_path.glob("coco_pope_*.json")):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        split = path.stem.rpartition("_")[2]
        target = tmp_path / source / f"{source}_{middle}_{split}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(rows, indent=2), encoding="utf-8")
        path.unlink()
    answers = {f"{split}/{i}": ("yes", "no")[i % 2 == 0]
               for split in ("random", "popular", "adversarial") for i in range(1, 5)}  # fmt: skip
    found = made.scored("pope", tmp_path, answers, tmp_path / "out")
    assert found["all", "f1"] == found["random", "accuracy"] == 1.0


def test_pope_of_several_collections_has_groups_of_each(tmp_path: Path) -> None:
    made.pope(tmp_path)
    for path in sorted(tmp_path.glob("coco_pope_*.json")):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        copy = tmp_path / path.name.replace("coco", "gqa")
        copy.write_text(json.dumps(rows), encoding="utf-8")
    splits = ("random", "popular", "adversarial")
    answers = {f"gqa {split}/{i}": "yes" for split in splits for i in range(1, 5)}
    answers |= {f"coco {split}/{i}": "no" for split in splits for i in range(1, 5)}
    found = made.scored("pope", tmp_path, answers, tmp_path / "out")
    assert found["gqa random", "recall"] == 1.0
    assert found["coco random", "recall"] == 0.0
    assert found["all", "recall"] == 0.5


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


def test_shapes_pope_asks_about_as_much_that_is_there_as_is_not() -> None:
    from evals.benchmarks.shapes_pope import ShapesPope

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
    bootstrap = Bootstrap(400, 0.9, 3)
    columns_RC = np.stack([values_R, np.ones(50)], 1)
    found = bootstrap.sums([columns_RC], lambda sums: sums[0][:, 0] / sums[0][:, 1])
    expected = bootstrap.mean(values_R)
    assert found.count == expected.count
    for name in ("value", "low", "high"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name))


def test_mme_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A subtask is worth 200: its share of right answers and of pictures with both right."""
    data = made.mme(tmp_path / "mme")
    answers = {
        f"{name}/{stem}/{n}": ("Yes", "No")[n]
        for name in PERCEPTION
        for stem in "ab"
        for n in (0, 1)
    }
    answers["OCR/a/1"] = "yes"  # 75 + 50
    answers["count/a/0"] = ""  # likewise: what is no yes is wrong
    found = made.scored("mme", data, answers, tmp_path / "out")
    assert found["OCR", "accuracy"] == 75
    assert found["OCR", "accuracy+"] == 50
    assert found["count", "score"] == 125
    assert found["all", "perception"] == 8 * 200 + 2 * 125
    assert found["all", "items/empty answer"] == 1
    del answers["OCR/b/0"]
    found = made.scored("mme", data, answers, tmp_path / "less")
    assert "1 pictures have only one scored question" in capsys.readouterr().err
    assert found["OCR", "score"] == 50 + 0


def test_mme_needs_all_subtasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = made.mme(tmp_path / "mme")
    shutil.rmtree(data / "OCR")
    assert made.run("mme", tmp_path / "out", "--data", str(data), "--checkpoint", made.BASE) == 2
    assert "has no folder for OCR" in capsys.readouterr().err


def test_vqav2_by_hand(tmp_path: Path) -> None:
    """Four of ten say 2: left out one of them three agree, left out another four; all are full.

    One of ten says red car: nine times one agrees, once none does.
    """
    answers = {"11": "Two.", "12": "Don't know", "21": "red car"}
    found = made.scored("vqav2", made.vqav2(tmp_path), answers, tmp_path / "out")
    assert found["number", "accuracy"] == pytest.approx(100)
    assert found["other", "accuracy"] == pytest.approx((100 + 90 / 3) / 2)
    assert found["all", "accuracy"] == pytest.approx((100 + 100 + 30) / 3)


def test_vqav2_refuses_annotations_of_other_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made.vqav2(tmp_path) / "v2_mscoco_val2014_annotations.json"
    path.write_text(path.read_text().replace('"question_id": 21', '"question_id": 22'))
    assert (
        made.run("vqav2", tmp_path / "o", "--data", str(tmp_path), "--checkpoint", made.BASE) == 2
    )
    assert "2 question ids are in one of questions and annotations only" in capsys.readouterr().err


def test_gqa_by_hand(tmp_path: Path) -> None:
    """Capitals and punctuation do not count, anything else does."""
    answers = {"0": "Yes.", "1": "T-Shirt", "2": "left side"}
    found = made.scored("gqa", made.gqa(tmp_path), answers, tmp_path / "out")
    assert found["query", "accuracy"] == 50
    assert found["all", "accuracy"] == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("The answer is 3.5", "3.50", True),
        ("so x = 1,000", "1000", True),
        ("it is a cat", "cat", True),
        ("b", "B", True),
        ("about", "B", False),
        ("7", "['7.0', 'seven']", True),
        ("4", "[3, 5]", False),
    ],
)
def test_mmmu_open_answers(reply: str, answer: str, right: bool) -> None:
    assert open_answer_is_right(parse_open(reply), answer) == right


def test_mmmu_by_hand(tmp_path: Path) -> None:
    """A choice that cannot be told is drawn, the same one every time, and counted."""
    answers = {"validation_Art_1": "B", "validation_Art_2": "", "validation_Math_1": "It is 3.5"}
    found = made.scored("mmmu", made.mmmu(tmp_path), answers, tmp_path / "out")
    drawn = made.items(tmp_path / "out")[1]["prediction"]
    assert drawn in ("A", "B")
    assert found["Math", "accuracy"] == 100
    assert found["Art", "accuracy"] == (100 if drawn == "A" else 50)
    assert found["several pictures", "accuracy"] == (100 if drawn == "A" else 0)
    assert found["all", "items/empty answer"] == 1
    again = made.scored("mmmu", tmp_path, answers, tmp_path / "again")
    assert again == found


@pytest.mark.parametrize("name", ["mme", "vqav2", "gqa", "mmmu", "flickr30k"])
def test_a_model_answers_every_item(name: str, tmp_path: Path) -> None:
    data, to = getattr(made, name)(tmp_path), tmp_path / "out"
    assert made.run(name, to, "--data", str(data), "--checkpoint", made.BASE) == 0
    assert not {"no image", "no answer"} & {row["status"] for row in made.items(to)}


def test_cider_by_hand() -> None:
    """Two pictures with one reference of two words each, and no word in common.

    The same words get the cosines 1, 1, 0 and 0 (there are no trigrams), times 10. One of two words
    has half of the unigrams' squared norm in common, and one bigram less: exp(-1 / 72).
    """
    references = [["red dog"], ["blue cat"]]
    assert cider(["red dog", "blue cat"], references) == pytest.approx([5, 5])
    assert cider(["red dog", "green bird"], references) == pytest.approx([5, 0])
    penalty = math.exp(-1 / 72)
    one_word = 10 * penalty * (1 / math.sqrt(2)) / 4
    assert cider(["dog", ""], references) == pytest.approx([one_word, 0])


def test_flickr30k_takes_the_test_split_and_weighs_words_by_all_of_it(tmp_path: Path) -> None:
    answers = {"1.jpg": "A dog runs.", "2.jpg": "two men talk", "3.jpg": ""}
    found = made.scored("flickr30k", made.flickr30k(tmp_path), answers, tmp_path / "out")
    told = [json.loads(row["answer"]) for row in made.items(tmp_path / "out")]
    expected = cider(list(answers.values()), told)
    assert found["all", "cider"] == pytest.approx(100 * np.mean(expected))
    assert found["all", "items/empty answer"] == 1
