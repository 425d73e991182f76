"""The built-in world: splits, pictures, questions and the oracle agree with each other."""

import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from data.shapes.language import Mention, Prompt, caption, describe, make_prompt, references, retell
from data.shapes.oracle import MIN_IOU, answer_images, read
from data.shapes.questions import HOW_MANY, WHOLE, answer, prompt_questions, training_questions
from data.shapes.records import make_records
from data.shapes.render import CELL, HALVES, PARTS, cell_pixels, part_mask, render, render_broken
from data.shapes.scene import (
    CATEGORIES,
    COLORS,
    HELD_OUT_PAIRS,
    SHAPES,
    SIZES,
    SPLITS,
    Object,
    Scene,
    held_out,
    sample_scene,
    split_of,
)
from models.families.showo.model import ShowoModel

BASE = Path(__file__).parent.parent / "models/assets/shapes/base"
RED_CIRCLE_LEFT_OF_BLUE_DOME = Scene(
    (Object(0, "circle", "red", "small"), Object(1, "dome", "blue", "large"))
)


def scenes(num: int, split: str = "train", seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(CATEGORIES[i % 6], split, rng) for i in range(num)]  # type: ignore[arg-type]


def test_splits_share_no_scene_and_only_test_shows_held_out_compositions() -> None:
    drawn = {split: {s.digest for s in scenes(600, split)} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not drawn[one] & drawn[other]
    for split in ("train", "pool", "validation"):
        assert not any(held_out(scene) for scene in scenes(600, split))
    assert any(held_out(scene) for scene in scenes(60, "test"))


def test_held_out_pair_and_relation_go_to_test() -> None:
    color, shape = sorted(HELD_OUT_PAIRS)[0]
    assert split_of(Scene((Object(0, shape, color, "small"),))) == "test"
    beside = Scene((Object(0, "circle", "red", "small"), Object(1, "house", "red", "small")))
    assert split_of(beside) == "test"


def test_oracle_reads_every_look_in_every_cell_and_whole_scenes() -> None:
    looks = itertools.product(range(4), SHAPES, COLORS, SIZES)
    single = [Scene((Object(*look),)) for look in looks]
    assert read(np.stack([render(scene) for scene in single])) == single
    drawn = scenes(600)
    assert read(np.stack([render(scene) for scene in drawn])) == drawn


def test_a_shape_without_a_quarter_is_malformed() -> None:
    canvas = render(Scene((Object(0, "square", "red", "large"),)))
    canvas[:8, :8] = canvas[-1, -1]
    seen = read(canvas[None])[0]
    assert seen.malformed == 1
    assert answer(WHOLE, seen) == "no"


def test_pictures_of_another_size_are_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"reads pictures of 32 x 32 pixels.*draws 24 x 24"):
        read(np.zeros((2, 24, 24, 3), np.uint8))


def test_templates_of_different_looks_are_told_apart() -> None:
    looks = [part_mask(part, size).ravel() for part in PARTS for size in SIZES]
    for a, b in itertools.combinations(looks, 2):
        assert (a & b).sum() / (a | b).sum() < MIN_IOU


def test_broken_pictures_are_mostly_recognised_as_broken() -> None:
    rng = np.random.default_rng(0)
    broken = np.stack([render_broken(scene, rng) for scene in scenes(300)])
    # The rest replaced background by background, or a quarter by an equal one.
    assert np.mean([scene.malformed > 0 for scene in read(broken)]) > 0.6


@pytest.mark.parametrize("split", SPLITS)
def test_every_question_of_a_record_is_answered_right_by_its_scene(split: str) -> None:
    for record in make_records(120, split, seed=1):  # type: ignore[arg-type]
        assert len({q.question for q in record.questions}) == len(record.questions)
        for question in record.questions:
            assert question.answer in question.choices
            assert answer(question.question, record.scene) == question.answer
        for question in training_questions(record.scene, np.random.default_rng(0), 5):
            assert question.answer in question.choices


def test_questions_catch_extra_objects_swapped_attributes_and_wrong_relations() -> None:
    prompt = Prompt(
        (Mention(1, None, "red", "circle"), Mention(1, None, "blue", "dome")), "left of"
    )
    asked = prompt_questions(prompt, np.random.default_rng(0))

    def share(scene: Scene) -> float:
        return float(np.mean([answer(q.question, scene) == q.answer for q in asked]))

    a, b = RED_CIRCLE_LEFT_OF_BLUE_DOME.objects
    assert share(RED_CIRCLE_LEFT_OF_BLUE_DOME) == 1
    extra = Object(2, "circle", "red", "small")
    assert share(Scene((a, b, extra))) < 1
    swapped = Scene((Object(0, "circle", "blue", "small"), Object(1, "dome", "red", "large")))
    assert share(swapped) < 1
    mirrored = Scene((Object(0, "dome", "blue", "large"), Object(1, "circle", "red", "small")))
    assert share(mirrored) < 1
    assert share(Scene((a, b), malformed=1)) < 1


def test_direction_is_asked_of_neighbours_and_has_no_answer_for_diagonals() -> None:
    asked = "where is the circle from the dome?"
    assert answer(asked, RED_CIRCLE_LEFT_OF_BLUE_DOME) == "left"
    circle, dome = RED_CIRCLE_LEFT_OF_BLUE_DOME.objects
    assert answer(asked, Scene((circle, replace(dome, cell=2)))) == "above"
    assert answer(asked, Scene((circle, replace(dome, cell=3)))) is None
    assert answer(asked, Scene((circle, replace(dome, cell=1), replace(dome, cell=2)))) is None


def test_held_out_pairs_are_made_of_pieces_that_training_shows() -> None:
    def pieces(pairs: Iterable[tuple[str, str]]) -> set[bytes]:
        half = CELL // 2
        cells = [cell_pixels(Object(0, s, c, size)) for c, s in pairs for size in SIZES]
        return {
            cell[y : y + half, x : x + half].tobytes()
            for cell in cells
            for y in (0, half)
            for x in (0, half)
        }

    shown = set(itertools.product(COLORS, SHAPES)) - HELD_OUT_PAIRS
    assert pieces(HELD_OUT_PAIRS) <= pieces(shown)


def test_halves_that_make_no_shape_are_malformed() -> None:
    """All quarters are known, of one colour and size, and yet it is no shape."""
    square, circle = (
        render(Scene((Object(0, shape, "red", "large"),))) for shape in ("square", "circle")
    )
    assert ("square", "round") not in HALVES.values()
    square[8:16] = circle[8:16]
    assert read(square[None]) == [Scene((), malformed=1)]


def test_questions_without_a_true_answer_have_none() -> None:
    empty = Scene(())
    assert answer("what color is the circle?", empty) is None
    assert answer(HOW_MANY, empty) is None
    assert answer("is there a red circle?", empty) == "no"
    with pytest.raises(ValueError, match="not a question of the shapes world"):
        answer("who painted this?", Scene(()))


def test_captions_are_canonical_and_references_state_the_same() -> None:
    scene = RED_CIRCLE_LEFT_OF_BLUE_DOME
    assert caption(scene) == "a small red circle left of a large blue dome"
    assert references(scene)[1] == "a large blue dome right of a small red circle"
    assert retell(retell(describe(scene))) == describe(scene)


def test_prompts_leave_open_what_their_category_does_not_test() -> None:
    scene = Scene((Object(0, "circle", "red", "small"),))
    assert str(make_prompt("single_object", scene, np.random.default_rng(0))) == "a circle"


def test_a_third_of_the_test_records_shows_held_out_compositions() -> None:
    records = make_records(180, "test", seed=0)
    assert np.mean([record.composition == "held-out" for record in records]) == pytest.approx(1 / 3)
    assert make_records(30, "pool", seed=3) == make_records(30, "pool", seed=3)
    assert make_records(30, "pool", seed=3) != make_records(30, "pool", seed=4)


def test_shipped_tokenizer_keeps_what_questions_ask_for() -> None:
    """At least 97 % of the questions are answered right on reconstructions."""
    model = ShowoModel.from_pretrained(BASE)
    records = make_records(300, "test", seed=2)
    codes = model.encode([Image.fromarray(record.image()) for record in records])
    images = np.stack([np.asarray(image) for image in model.decode(codes)])
    questions = [[{"question": q.question} for q in record.questions] for record in records]
    right = [
        said == question.answer
        for record, answers in zip(records, answer_images(images, questions), strict=True)
        for question, said in zip(record.questions, answers, strict=True)
    ]
    assert np.mean(right) >= 0.97
