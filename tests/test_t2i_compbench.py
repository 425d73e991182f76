"""T2I-CompBench++, attribute binding: products by hand and by loops, and a judge that runs."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import benchmark_files as made
import pandas as pd
import pytest
from hypothesis import given as given_values
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from core.errors import UserError
from evals.benchmarks.base import Item, item_row
from evals.benchmarks.shapes_pope import held_out_records
from evals.benchmarks.t2i_compbench import (
    CATEGORIES,
    T2ICompBench,
    asked_about,
    probability_of_yes,
    verdict,
)
from evals.statistics import Bootstrap
from evals.systems.base import NoPicture, Picture, Prompt
from evals.systems.pictures import PictureFolder
from tests.commands import benchmark
from tests.llm_server import llm_server
from tests.test_benchmarks_of_today import config_with

PROMPTS = {
    "color": ["a red bowl and a blue bench", "a vase"],
    "shape": ["a round plate"],
    "texture": ["a wooden chair.\tseen", ""],
}
PHRASES = {
    "a red bowl and a blue bench": ["a red bowl", "a blue bench"],
    "a vase": ["a vase"],
    "a round plate": ["the left", "a round plate"],
    "a wooden chair.": ["a wooden chair"],
}


def files(folder: Path, phrases: Mapping[str, object] = PHRASES) -> Path:
    folder.mkdir(exist_ok=True)
    for category, prompts in PROMPTS.items():
        (folder / f"{category}_val.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    (folder / "noun_phrases.json").write_text(json.dumps(phrases), encoding="utf-8")
    return folder


def items(folder: Path) -> list[Item]:
    return T2ICompBench(folder, None, "told").items()  # type: ignore[arg-type]


def figures_of(scored: Sequence[tuple[str, str, Sequence[float | None]]]) -> dict[str, float]:
    """Values by group, of answered pictures of (category, prompt, probabilities)."""
    rows = pd.DataFrame(
        [
            item_row(Item(f"{n}", category, prompt, "p", "[]"), "", verdict(probabilities))
            for n, (category, prompt, probabilities) in enumerate(scored)
        ]
    )
    found = T2ICompBench.item_figures(rows[rows["status"] == "answered"])
    return {one.group: one.estimate(Bootstrap(20, 0.9)).value for one in found}


def test_items_are_the_prompts_with_the_phrases_of_the_file(tmp_path: Path) -> None:
    found = items(files(tmp_path))
    assert [(one.item_id, one.group, one.text, json.loads(one.answer)) for one in found] == [
        ("color_000", "color", "a red bowl and a blue bench", ["a red bowl", "a blue bench"]),
        ("color_001", "color", "a vase", ["a vase"]),
        ("shape_000", "shape", "a round plate", ["a round plate"]),
        ("texture_000", "texture", "a wooden chair.", ["a wooden chair"]),
    ]


def test_the_first_eight_phrases_count_without_those_that_are_left_out() -> None:
    phrases = ["top", "the side", *"abcd", "the right", *"efghij"]
    assert asked_about(phrases) == list("abcdefgh")
    assert asked_about(["The left"]) == ["The left"]


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        ([("Yes", 0.5), (" yes", 0.1), ("No", 0.2), ("A", 0.2)], 0.75),
        ([("▁no", 0.6), ("YES.", 0.2)], 0.25),
        ([("yes", 0.9)], 1.0),
        ([("No", 0.9), ("Nope", 0.1)], 0.0),
        ([("The", 0.6), ("yes", 0.4)], None),
    ],
)
def test_yes_is_weighed_against_no(top: list[tuple[str, float]], expected: float | None) -> None:
    assert probability_of_yes(top) == (None if expected is None else pytest.approx(expected))


def test_a_picture_is_worth_the_product_of_its_phrases() -> None:
    """.5 times .5, and 1; a phrase without an answer leaves the picture out, and is no yes."""
    assert verdict([0.5, 0.5]).score == 0.25
    for unknown in ([0.5, None], [None], []):
        assert (verdict(unknown).status, verdict(unknown).score) == ("no answer", 0.0)
    found = figures_of(
        [
            ("color", "a", [0.5, 0.5]), ("color", "a", [1.0, 1.0]), ("color", "b", [0.5, None]),
            ("shape", "c", [0.2]), ("texture", "d", [0.5]), ("texture", "e", [0.9]),
        ]
    )  # fmt: skip
    assert found == pytest.approx(
        {"color": 0.625, "shape": 0.2, "texture": 0.7, "all": (0.625 + 0.2 + 0.7) / 3}
    )


PROBABILITIES = st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given_values(
    st.lists(
        st.tuples(st.sampled_from(CATEGORIES), st.integers(0, 5), PROBABILITIES),
        min_size=1,
        max_size=20,
    )
)
def test_figures_of_any_probabilities_are_those_of_plain_loops(
    drawn: list[tuple[str, int, list[float | None]]],
) -> None:
    means = {}
    for category in CATEGORIES:
        products = []
        for name, _, probabilities in drawn:
            product: float | None = 1.0
            for one in probabilities:
                product = None if product is None or one is None else product * one
            if name == category and product is not None:
                products.append(product)
        if products:
            means[category] = math.fsum(products) / len(products)
    if not means:
        return
    scored = [(category, f"{category}{prompt}", values) for category, prompt, values in drawn]
    expected = {**means, "all": math.fsum(means.values()) / len(means)}
    assert figures_of(scored) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("phrases", "message"),
    [
        ({}, "has no noun phrases of 'a red bowl and a blue bench', a prompt of color_val.txt"),
        ([], "is no JSON object"),
        ({**PHRASES, "a vase": "a vase"}, "the noun phrases of 'a vase' are 'a vase', no texts"),
        ({**PHRASES, "a vase": [" "]}, "no texts"),
    ],
)
def test_a_file_of_phrases_that_is_not_whole_is_refused(
    phrases: Mapping[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        items(files(tmp_path, phrases))


def test_without_a_file_of_phrases_the_way_out_is_told(tmp_path: Path) -> None:
    (files(tmp_path) / "noun_phrases.json").unlink()
    with pytest.raises(UserError, match="make it from the prompts with a parser"):
        items(tmp_path)


def test_pictures_are_found_by_their_prompt_and_number(tmp_path: Path) -> None:
    """Ten follow nine; two items with one prompt divide its files; others are left out."""
    prompts = [Prompt("a", "a vase."), Prompt("b", "a cup"), Prompt("c", "a cup"), Prompt("d", "x")]
    shades = {"a vase._000009": 9, "a vase._000010": 10} | {f"a cup_{n:06}": n for n in range(4)}
    for name, shade in {**shades, "a jug_000001": 1}.items():
        Image.new("RGB", (2, 2), (shade, 0, 0)).save(tmp_path / f"{name}.png")
    folder = PictureFolder(tmp_path, prompts)
    found = [
        [one.image.getpixel((0, 0))[0] for one in own if isinstance(one, Picture)]  # type: ignore[index]
        for own in folder.draw(prompts, 2)
    ]
    assert found == [[9, 10], [0, 1], [2, 3], []]
    assert isinstance(folder.draw(prompts[3:], 2)[0][0], NoPicture)
    assert folder.recipe["layout"] == "t2i_compbench"


def test_a_server_judges_by_the_probability_of_yes(tmp_path: Path) -> None:
    """Of two phrases one is there: 0; of one that is there: 1. Missing pictures are counted."""
    record = next(iter(held_out_records(240, "test").values()))
    there = f"a {record.scene.objects[0].color} {record.scene.objects[0].shape}"
    absent = next(
        f"a {color} {record.scene.objects[0].shape}"
        for color in ("red", "blue", "green", "yellow")
        if not any((o.color, o.shape) == (color, record.scene.objects[0].shape)
                   for o in record.scene.objects)
    )  # fmt: skip
    told = {
        "a red bowl and a blue bench": [there, absent], "a vase": [there],
        "a round plate": [there, "top"], "a wooden chair.": [there],
    }  # fmt: skip
    data = files(tmp_path / "data", told)
    (tmp_path / "drawn").mkdir()
    for number, prompt in enumerate([*PHRASES][:3]):
        for sample in range(10):
            name = f"{prompt}_{10 * number + sample:06}.png"
            Image.fromarray(record.image()).save(tmp_path / "drawn" / name)
    with llm_server() as server:
        given = [
            "t2i_compbench", "--data", str(data), "--judge", "endpoint", "--pictures",
            str(tmp_path / "drawn"), "--to", str(tmp_path / "out"), "--config",
            str(config_with(tmp_path, server)),
        ]  # fmt: skip
        assert benchmark(given) == 0
        texts = {body["messages"][0]["content"][1]["text"] for body in server.bodies}
    assert texts == {f"{there}? Answer yes or no.", f"{absent}? Answer yes or no."}
    found = made.figures(tmp_path / "out")
    assert found["color", "vqa"] == 0.5
    assert found["shape", "vqa"] == 1
    assert found["all", "vqa"] == 0.75
    assert found["all", "items/not drawn"] == 10


def test_a_prompt_without_a_phrase_is_not_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        found = items(files(tmp_path, {**PHRASES, "a vase": ["the side"]}))
    assert found[1].answer == "[]"
    assert "1 of 4 prompts have no noun phrase" in caplog.text + capsys.readouterr().err


def test_another_judge_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p").mkdir()
    given = ["--data", str(files(tmp_path / "data")), "--judge", "x", "--pictures"]
    assert made.run("t2i_compbench", tmp_path / "out", *given, str(tmp_path / "p")) == 2
    assert "judged by a model of a server" in capsys.readouterr().err
