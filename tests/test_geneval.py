"""GenEval's rules on detections that were made by hand, and its judges with small weights."""

import json
from pathlib import Path
from typing import Any

import benchmark_files as made
import numpy as np
import pytest
from PIL import Image
from tiny_judges import clip, detector

from data.shapes.language import Mention, Prompt
from data.tables import read_table
from evals.benchmarks.geneval_rules import grade, kept, relations
from evals.benchmarks.shapes_geneval import ShapesGenEval, metadata_of
from evals.networks.clip_similarity import ClipSimilarity
from evals.networks.detector import Detection, Detector, cut_out, mask_box

LABELS = ("cat", "dog", "mouse")
MOUSE = {"class": "computer mouse", "count": 1, "color": "red"}
PROMPTS: list[dict[str, Any]] = [
    {"tag": "single_object", "include": [{"class": "cat", "count": 1}]} | {"prompt": "a cat"},
    {"tag": "color_attr", "include": [MOUSE], "prompt": "a photo of a red computer mouse"},
]


def at(label: str, x: float, y: float, score: float = 0.95, size: float = 10) -> Detection:
    """A square around a point."""
    half = size / 2
    return Detection(label, score, (x - half, y - half, x + half, y + half))


def wrong(
    tag: str, detections: list[Detection], colors: dict[float, str] | None = None, **parts: Any
) -> str:
    """What the rules say; `colors` are those of objects by their score."""
    names = colors or {}
    found = kept(detections, tag)
    return "; ".join(grade(found, parts, lambda objects: [names[o.score] for o in objects]))


def test_thresholds_keep_what_is_sure_and_at_most_sixteen() -> None:
    detections = [at("cat", i, 0, score=0.31 + i / 100) for i in range(20)] + [at("cat", 0, 0, 0.3)]
    assert len(kept(detections, "two_object")["cat"]) == 16
    assert kept(detections, "two_object")["cat"][0].score == pytest.approx(0.5)
    assert kept(detections, "counting") == {}
    assert len(kept([at("cat", 0, 0, 0.91)], "counting")["cat"]) == 1


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0), (20, 0), {"left of"}),
        ((0, 0), (20, 20), {"left of", "above"}),
        ((20, 1), (0, 0), {"right of"}),
        ((0, 30), (5, 0), {"below"}),
        ((0, 0), (2, 0), set()),  # a tenth of both sizes is allowed for
        ((0, 0), (3, 0), set()),  # beyond that by 1 of 3
    ],
)
def test_relations(a: tuple[float, float], b: tuple[float, float], expected: set[str]) -> None:
    assert relations(at("cat", *a), at("dog", *b)) == expected


def test_counting_wants_the_exact_number() -> None:
    wanted = {"include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}]}
    cats = [at("cat", 20 * i, 0) for i in range(3)]
    assert wrong("counting", cats[:2], **wanted) == ""
    assert wrong("counting", cats[:1], **wanted) == "expected cat>=2, found 1"
    assert wrong("counting", cats, **wanted) == "expected cat<3, found 3"


def test_colours_are_those_of_the_surest_objects() -> None:
    wanted = {"include": [{"class": "cat", "count": 1, "color": "red"}]}
    cats = [at("cat", 0, 0, 0.9), at("cat", 20, 0, 0.5)]
    assert wrong("colors", cats, {0.9: "red", 0.5: "blue"}, **wanted) == ""
    assert wrong("colors", cats, {0.9: "blue", 0.5: "red"}, **wanted) == (
        "expected red cat>=1, found blue"
    )


def test_positions_are_relative_to_an_earlier_object_that_must_be_right_itself() -> None:
    wanted = {
        "include": [
            {"class": "dog", "count": 1},
            {"class": "cat", "count": 1, "position": ["left of", 0]},
        ]
    }
    dog = at("dog", 50, 0)
    assert wrong("position", [dog, at("cat", 0, 0)], **wanted) == ""
    assert wrong("position", [dog, at("cat", 99, 0)], **wanted) == (
        "expected cat left of target, found right of"
    )
    assert "no target for cat" in wrong("position", [at("cat", 0, 0)], **wanted)


def test_an_object_is_cut_out_of_the_picture() -> None:
    """In its box, with the background for pixels of the box that are not its own."""
    mask = np.zeros((8, 8), bool)
    mask[2:4, 1:5] = mask[4, 1] = True
    assert mask_box(mask) == (1, 2, 5, 5)
    cut = cut_out(
        Image.new("RGB", (8, 8), "red"), Detection("cat", 1.0, mask_box(mask), mask), "#999"
    )
    assert cut.size == (4, 3)
    assert cut.getpixel((0, 2)) == (255, 0, 0)
    assert cut.getpixel((1, 2)) == (0x99, 0x99, 0x99)


def test_detections_have_labels_boxes_and_masks_of_the_picture(tmp_path: Path) -> None:
    found = Detector(detector(tmp_path / "d", LABELS), "cpu").detect(
        Image.new("RGB", (40, 30), "red")
    )
    assert found
    assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)
    for one in found:
        assert one.label in LABELS
        assert 0 < one.score < 1
        assert one.mask_HW is not None
        assert one.mask_HW.shape == (30, 40)
        assert one.box == mask_box(one.mask_HW)


def test_clip_gives_unit_vectors_and_classifiers(tmp_path: Path) -> None:
    judge = ClipSimilarity(clip(tmp_path / "c"), "cpu")
    images = judge.images([Image.new("RGB", (20, 30), color) for color in ("red", "blue")])
    texts = judge.texts(["a red cat", "the dog " * 30])
    rows = judge.classifier(["red", "blue"], ["a {} cat", "the {} dog"])
    for vectors in (images, texts, rows):
        assert vectors.shape == (2, 8)
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    alone = judge.texts(["a red cat"])
    assert alone[0] == pytest.approx(texts[0], abs=1e-5)  # padding does not count


def test_geneval_draws_and_judges_four_pictures_a_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And names a class that the detector does not know."""
    made.json_lines(tmp_path / "evaluation_metadata.jsonl", PROMPTS)
    judges = ("--clip", str(clip(tmp_path / "c")), "--data", str(tmp_path))
    judges += ("--checkpoint", made.BASE)
    given = ("--detector", str(detector(tmp_path / "d", LABELS)), *judges)
    assert made.run("geneval", tmp_path / "out", *given) == 0
    rows = made.items(tmp_path / "out")
    assert [(row["item_id"], row["sample"]) for row in rows] == [
        (item_id, sample) for item_id in ("00000", "00001") for sample in range(4)
    ]
    assert all(bool(row["score"]) == (row["prediction"] == "") for row in rows)
    found = made.figures(tmp_path / "out")
    by_category = [found[tag, "right"] for tag in ("single_object", "color_attr")]
    assert found["all", "overall"] == pytest.approx(np.mean(by_category))
    assert read_table(tmp_path / "out/images/part-00000.parquet", "images").num_rows == 8
    given = ("--detector", str(detector(tmp_path / "e", ("cat", "dog"))), *judges)
    assert made.run("geneval", tmp_path / "no", *given) == 2
    assert "the detector does not know 'computer mouse'" in capsys.readouterr().err


def test_prompts_of_shapes_have_the_metadata_of_geneval() -> None:
    said = Prompt((Mention(1, None, "red", "circle"), Mention(1, None, None, "dome")), "left of")
    assert metadata_of(said, "position")["include"] == [
        {"class": "dome", "count": 1},
        {"class": "circle", "count": 1, "color": "red", "position": ["left of", 0]},
    ]
    counted = metadata_of(Prompt((Mention(3, None, None, "dome"),)), "counting")
    assert counted["exclude"] == [{"class": "dome", "count": 4}]


def test_true_pictures_of_shapes_are_right() -> None:
    """The renderer's picture of every held-out scene passes the rules for its prompt."""
    from data.shapes.records import make_records

    benchmark = ShapesGenEval("validation", 30)
    for item, record in zip(benchmark.items(), make_records(30, "validation", 0), strict=True):
        picture = Image.fromarray(record.image())
        assert [v.prediction for v in benchmark.grade(item, [picture])] == [""], (
            item,
            json.loads(item.answer),
        )
