"""GenEval 2 and WISE_Verified: figures by hand, by other arithmetic, and with judges that run."""

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import benchmark_files as made
import numpy as np
import pandas as pd
import pytest
from hypothesis import given as given_values
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image
from stage_inputs import QUICK

from core.errors import UserError
from evals.benchmarks.base import Item, Verdict, item_row
from evals.benchmarks.geneval2 import GenEval2, geometric_mean, spellings, verdict
from evals.benchmarks.wise import FIELDS, Wise, field_of
from evals.judges.first_token import Asked, Mass, ModelProbabilities, mass_of
from evals.statistics import Bootstrap
from tests.commands import benchmark
from tests.llm_server import endpoint, llm_server
from tests.tiny_systems import chameleon

HOW_MANY = ("How many cows are in the image?", "three", "count")
PLASTIC = ("Are the cows plastic?", "Yes", "attribute")
COWS = ("Are there any cows in the image?", "Yes", "object")


def row(prompt: str, *atoms: tuple[str, str, str], count: int | None = None) -> dict[str, object]:
    pairs = [[question, answer] for question, answer, _ in atoms]
    told = {"prompt": prompt, "atom_count": count or len(atoms), "vqa_list": pairs}
    return told | {"skills": [skill for *_, skill in atoms]}


def geneval2(folder: Path, *rows: dict[str, object]) -> Path:
    made.json_lines(folder / "geneval2_data.jsonl", rows)
    return folder


class Told:
    """A judge with given probabilities, picture by picture."""

    def __init__(self, given: Sequence[Sequence[Mass | None]]) -> None:
        self.given = iter(given)
        self.asked: list[Asked] = []

    def masses(self, picture: Image.Image, asked: Sequence[Asked]) -> list[Mass | None]:
        self.asked += asked
        return list(next(self.given))


def exact(*values: float | None) -> list[Mass | None]:
    return [None if value is None else Mass(value, value) for value in values]


def figures_of(items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[tuple[str, str], float]:
    rows = [item_row(item, "", one) for item, one in zip(items, verdicts, strict=True)]
    found = GenEval2.item_figures(pd.DataFrame(rows))
    return {(one.group, one.name): one.estimate(Bootstrap(50, 0.9)).value for one in found}


def test_soft_tifa_by_hand(tmp_path: Path) -> None:
    """Atoms of .25, 1 and 1 have the means .75 and .63; two of .5 and .125 have .3125 and .25."""
    folder = geneval2(
        tmp_path, row("three plastic cows", HOW_MANY, PLASTIC, COWS), row("cows", PLASTIC, COWS)
    )
    judge = Told([exact(0.25, 1, 1), exact(0.5, 0.125)])
    found = GenEval2(folder, judge, "told")
    items = found.items()
    blank = Image.new("RGB", (4, 4))
    verdicts = [found.grade(item, [blank])[0] for item in items]
    assert [one.status for one in verdicts] == ["answered"] * 2
    assert judge.asked[0].text == "How many cows are in the image? Answer in one word."
    values = figures_of(items, verdicts)
    first = 0.25 ** (1 / 3)
    assert values["all", "soft_tifa_am"] == pytest.approx(100 * (0.75 + 0.3125) / 2)
    assert values["all", "soft_tifa_gm"] == pytest.approx(100 * (first + 0.25) / 2)
    assert values["3 atoms", "soft_tifa_gm"] == pytest.approx(100 * first)
    assert values["count", "soft_tifa_am"] == 25
    assert values["attribute", "soft_tifa_am"] == 75
    assert values["object", "soft_tifa_am"] == pytest.approx(56.25)


@settings(max_examples=300, deadline=None)
@given_values(
    st.lists(
        st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=10),
        min_size=1,
        max_size=6,
    )
)
def test_soft_tifa_of_any_probabilities_is_that_of_plain_loops(values: list[list[float]]) -> None:
    """Means of products and sums that are written down anew; AM is never below GM."""
    items, verdicts = [], []
    for number, atoms in enumerate(values):
        asked = [
            {"question": "Is it?", "answer": "Yes", "skill": ("object", "verb")[index % 2]}
            for index in range(len(atoms))
        ]
        items.append(Item(str(number), "", str(number), "p", json.dumps(asked)))
        verdicts.append(verdict(exact(*atoms)))
    found = figures_of(items, verdicts)
    am = sum(sum(atoms) / len(atoms) for atoms in values) / len(values)
    gm = sum(math.prod(atoms) ** (1 / len(atoms)) for atoms in values) / len(values)
    assert found["all", "soft_tifa_am"] == pytest.approx(100 * am)
    assert found["all", "soft_tifa_gm"] == pytest.approx(100 * gm, rel=1e-6, abs=1e-9)
    assert found["all", "soft_tifa_gm"] <= found["all", "soft_tifa_am"] + 1e-9
    objects = [p for atoms in values for p in atoms[::2]]
    assert found["object", "soft_tifa_am"] == pytest.approx(100 * sum(objects) / len(objects))


def test_geometric_mean_of_many_small_values_does_not_vanish() -> None:
    assert geometric_mean([1e-200] * 4) == pytest.approx(1e-200)
    assert geometric_mean([0.0, 1.0]) == 0


@pytest.mark.parametrize(
    ("question", "answer", "forms"),
    [
        ("Are they red?", "Yes", {"Yes", "yes", " Yes", " yes"}),
        ("How many?", "four", {"four", "Four", " four", " Four", "4", " 4"}),
        ("How many?", "many", {"many", "Many", " many", " Many"}),
        ("Are they red?", "No", set()),
        ("How many?", "", set()),
    ],
)
def test_spellings_of_answers(question: str, answer: str, forms: set[str]) -> None:
    assert set(spellings(question, answer)) == forms


def test_what_a_server_does_not_list_is_between_nothing_and_the_least_that_it_lists() -> None:
    top = [("Yes", 0.6), (" yes", 0.2), ("No", 0.1), ("YES", 0.05)]
    found = mass_of(top, spellings("Is it?", "Yes"))
    assert found.low == pytest.approx(0.8)
    assert found.high == pytest.approx(0.85)  # .05 is left for the two others, and .1 they could be
    nothing = mass_of([("No", 0.9), ("Nope", 0.01)], spellings("Is it?", "Yes"))
    assert (nothing.low, nothing.high) == pytest.approx((0, 0.04))


def test_atoms_without_an_answer_are_left_out_and_counted() -> None:
    some, none = verdict(exact(0.25, None, 1.0)), verdict(exact(None))
    assert (some.status, some.score) == ("partly answered", 0.5)
    assert none.status == "no answer"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"skills": ["count"]}, "skills has 1 names"),
        ({"vqa_list": [["Are they?", "No"]] * 3}, "it is Yes, or a number"),
        ({"vqa_list": []}, "vqa_list has 0 pairs"),
    ],
)
def test_prompts_of_another_layout_are_named(
    changed: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = geneval2(tmp_path, row("three plastic cows", HOW_MANY, PLASTIC, COWS) | changed)
    with pytest.raises(UserError, match=message):
        GenEval2(folder, Told([]), "told").items()


def config_with(folder: Path, server: object) -> Path:
    document = endpoint(server).model_dump()  # type: ignore[arg-type]
    path = folder / "config.yaml"
    text = json.dumps({"extends": str(QUICK), "evaluation": {"endpoint": document}})
    path.write_text(text, encoding="utf-8")
    return path


def scenes(folder: Path, names: Sequence[str]) -> Path:
    """A picture of the shapes world for each name."""
    from evals.benchmarks.shapes_pope import held_out_records

    folder.mkdir()
    for name, record in zip(names, held_out_records(240, "test").values(), strict=False):
        Image.fromarray(record.image()).save(folder / f"{name}.png")
    return folder


def test_a_server_judges_geneval2_by_the_probability_of_yes(tmp_path: Path) -> None:
    """It says its answer with a probability of .7: right atoms are worth that, wrong ones 0."""
    from evals.benchmarks.shapes_pope import held_out_records

    record = next(iter(held_out_records(240, "test").values()))
    one = record.scene.objects[0]
    absent = next(
        c for c in ("red", "blue", "green", "yellow")
        if not any((c, one.shape) == (o.color, o.shape) for o in record.scene.objects)
    )  # fmt: skip
    there = (f"is there a {one.color} {one.shape}?", "Yes", "object")
    not_there = (f"is there a {absent} {one.shape}?", "Yes", "attribute")
    data = geneval2(tmp_path, row("a", there), row("b", there, not_there), row("c", there))
    pictures = scenes(tmp_path / "drawn", ["00000"])
    Image.fromarray(record.image()).save(pictures / "00001.png")
    with llm_server() as server:
        given = [
            "geneval2", "--data", str(data), "--judge", "endpoint", "--pictures", str(pictures),
            "--to", str(tmp_path / "out"), "--config", str(config_with(tmp_path, server)),
        ]  # fmt: skip
        assert benchmark(given) == 0
    found = made.figures(tmp_path / "out")
    assert found["1 atoms", "soft_tifa_gm"] == pytest.approx(70)
    assert found["2 atoms", "soft_tifa_gm"] == 0
    assert found["all", "soft_tifa_am"] == pytest.approx((70 + 35) / 2)
    assert found["all", "items/not drawn"] == 1


def test_a_model_of_transformers_gives_the_same_probabilities_as_its_logits(
    tmp_path: Path,
) -> None:
    from evals.checkpoints import open_checkpoint
    from evals.systems.vlm import ImageTextSystem

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = chameleon(tmp_path / "chameleon")
    system = ImageTextSystem(open_checkpoint(folder), "cpu", "float32", {})
    picture = Image.new("RGB", (8, 8), "red")
    asked = [Asked("is there a circle ?", (form,)) for form in ("yes", "no", "A")]
    got = [one.low for one in ModelProbabilities(system).masses(picture, asked) if one]
    both = Asked("is there a circle ?", ("yes", "no", "yes"))
    (together,) = ModelProbabilities(system).masses(picture, [both])
    assert together is not None
    assert together.low == together.high == pytest.approx(got[0] + got[1])
    row_ = {"type": "x", "question": "q", "choices": ["a"], "answer": "a"}
    assert 0 < system.choose([picture], [[row_]])[0][0].probability < 1  # type: ignore[list-item]


def wise(folder: Path) -> Path:
    """Two prompts of culture and time, one of each other field."""
    ids = {
        "cultural_common_sense": (1, 400), "spatio-temporal_reasoning": (401, 520, 521),
        "natural_science": (641, 800, 1000),
    }  # fmt: skip
    for name, numbers in ids.items():
        rows = [
            {"prompt_id": n, "Prompt": f"prompt {n}", "Explanation": f"what is {n}"}
            for n in numbers
        ]
        (folder / f"{name}_verified.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("item_id", "field"),
    [(1, "culture"), (400, "culture"), (401, "time"), (520, "time"), (521, "space"),
     (640, "space"), (641, "biology"), (761, "physics"), (880, "physics"), (1000, "chemistry")],
)  # fmt: skip
def test_fields_of_wise_go_by_id(item_id: int, field: str) -> None:
    assert field_of(item_id, "here") == field


@pytest.mark.parametrize("item_id", [0, 1001, "1", True, None])
def test_ids_of_no_prompt_are_refused(item_id: object) -> None:
    with pytest.raises(UserError, match="no number from 1 to 1000"):
        field_of(item_id, "here")


def test_weights_of_wise_are_those_of_its_prompts() -> None:
    """So that the score of all prompts is the share of right ones."""
    firsts = [0, *(last for last, _ in FIELDS.values())]
    for (last, weight), first in zip(FIELDS.values(), firsts, strict=False):
        assert weight == pytest.approx((last - first) / 1000)


@settings(max_examples=100, deadline=None)
@given_values(st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 1)), min_size=1, max_size=60))
def test_wiscore_of_any_verdicts_is_that_of_plain_loops(scores: list[tuple[int, int]]) -> None:
    rows = [
        item_row(Item(f"{n}", field_of(i, ""), f"{n}", "p", "e"), "", Verdict("", float(s)))
        for n, (i, s) in enumerate(scores)
    ]
    with warnings.catch_warnings():
        found = Wise.item_figures(pd.DataFrame(rows))[0].estimate(Bootstrap(20, 0.9)).value
    above = below = 0.0
    for name, (_, weight) in FIELDS.items():
        own = [score for item_id, score in scores if field_of(item_id, "") == name]
        if own:
            above += weight * sum(own) / len(own)
            below += weight
    assert found == pytest.approx(above / below)


def test_a_server_judges_wise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: .5 of culture, all of time, nothing of space, and physics has no picture."""
    data = wise(tmp_path)
    pictures = scenes(tmp_path / "drawn", ["1", "401", "520", "641", "800"])
    for name in ("400", "521", "1000"):
        Image.new("RGB", (8, 8), "red").save(pictures / f"{name}.png")
    (pictures / "800.png").unlink()
    with llm_server() as server:
        given = [
            "wise", "--data", str(data), "--judge", "endpoint", "--pictures", str(pictures),
            "--to", str(tmp_path / "out"), "--config", str(config_with(tmp_path, server)),
        ]  # fmt: skip
        assert benchmark(given) == 0
        said = server.bodies[0]["messages"][0]["content"][1]["text"]
    assert "Prompt: prompt 1\nWhat the picture should show: what is 1" in said
    found = made.figures(tmp_path / "out")
    assert found["culture", "right"] == 0.5
    assert found["time", "right"] == found["biology", "right"] == 1
    assert found["all", "wiscore"] == pytest.approx((0.4 * 0.5 + 0.12 + 0.12) / 0.88)
    assert found["all", "items/not drawn"] == 1
    assert "no prompt of physics was scored" in capsys.readouterr().err


def test_a_judge_that_gives_no_score_is_counted(tmp_path: Path) -> None:
    data = wise(tmp_path)
    pictures = scenes(tmp_path / "drawn", ["1", "400", "401", "520", "521", "641", "800", "1000"])
    config = {"extends": str(QUICK), "evaluation": {"max_unanswered": 0.5}}
    with llm_server() as server:
        server.faults.extend(["wrong_schema"] * 3)
        config["evaluation"] |= {"endpoint": endpoint(server, concurrency=1).model_dump()}  # type: ignore[operator]
        (tmp_path / "c.yaml").write_text(json.dumps(config), encoding="utf-8")
        given = [
            "wise", "--data", str(data), "--judge", "endpoint", "--pictures", str(pictures),
            "--to", str(tmp_path / "out"), "--config", str(tmp_path / "c.yaml"),
        ]  # fmt: skip
        assert benchmark(given) == 0
    found = made.figures(tmp_path / "out")
    assert found["all", "items/no answer"] == 1
    assert found["all", "wiscore"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "judge", "message"),
    [("geneval2", "self", "reads none"), ("wise", "x", "judged by a model of a server")],
)
def test_judges_that_cannot_judge_are_refused(
    name: str, judge: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p").mkdir()
    given = ["--data", str(wise(tmp_path)), "--judge", judge, "--pictures", str(tmp_path / "p")]
    assert made.run(name, tmp_path / "out", *given) == 2
    assert message in capsys.readouterr().err
    assert np.all([not path.is_dir() for path in tmp_path.glob("out")])
