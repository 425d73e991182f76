"""The emoji world: what its names say, what is asked about it, and what the shipped tables hold."""

from collections import Counter, defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest

from core.config import load_config
from data.emoji.make import OUT, SPLITS
from data.emoji.names import Emoji, Name, World, parse
from data.looks import grouped, look
from data.tables import decode_image, read_table
from evals.networks.caption_scorer import CaptionScorer
from evals.vqa import ask
from models.registry import load_model
from tests.limits import ROOT as PROJECT

TABLES = {split: OUT / f"{split}.parquet" for split in SPLITS}


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("woman firefighter: medium skin tone", Name("firefighter", ("woman",), ("medium",))),
        ("firefighter", Name("firefighter")),
        ("man: beard", Name("adult", ("man",), hair="beard")),
        ("person: dark skin tone, curly hair", Name("adult", ("person",), ("dark",), "curly hair")),
        ("girl", Name("child", ("woman",))),
        ("pregnant man: light skin tone", Name("pregnant", ("man",), ("light",))),
        (
            "woman running: facing right, medium-light skin tone",
            Name("running", ("woman",), ("medium-light",), turned=True),
        ),
        (
            "woman and man holding hands: light skin tone, dark skin tone",
            Name("holding hands", ("woman", "man"), ("light", "dark")),
        ),
        (
            "kiss: man, man, medium skin tone, light skin tone",
            Name("kiss", ("man", "man"), ("medium", "light")),
        ),
    ],
)
def test_a_name_is_taken_apart(title: str, name: Name) -> None:
    assert parse(title) == name


def emoji(title: str, group: str = "person-role", keywords: tuple[str, ...] = ()) -> Emoji:
    return Emoji(title.replace(" ", "-"), "Noto", group, title, keywords)


def test_questions_ask_what_tells_an_emoji_from_its_neighbours() -> None:
    titles = ["woman pilot", "man pilot", "pilot", "man cook: dark skin tone", "judge", "artist"]
    world = World([emoji(title, keywords=(f"tool of {title}",)) for title in titles])
    cook = emoji("man cook: dark skin tone", keywords=("pan",))
    asked = {q["type"]: q for q in world.questions(cook)}
    assert asked["what"]["answer"] == "cook"
    assert set(asked["what"]["choices"]) == {"cook", "pilot", "judge", "artist"}
    assert "who" not in asked, "there is one cook, so who it is follows from what is shown"
    assert asked["skin tone"]["answer"] == "dark"
    assert asked["keyword"]["answer"] == "pan"
    assert asked == {q["type"]: q for q in world.questions(cook)}, "the same every time"
    pilot = {q["type"]: q for q in world.questions(emoji("pilot"))}
    assert pilot["who"]["answer"] == "person"
    assert pilot["skin tone"]["answer"] == "yellow"
    assert "keyword" not in pilot


def test_both_figures_of_a_couple_are_asked_about() -> None:
    titles = ["kiss: woman, man, light skin tone, dark skin tone", "kiss", "couple with heart"]
    world = World([emoji(title, "family") for title in titles])
    asked = {q["question"]: q["answer"] for q in world.questions(emoji(titles[0], "family"))}
    assert asked["Which skin tone on the left?"] == "light"
    assert asked["Which skin tone on the right?"] == "dark"
    assert asked["What is shown?"] == "kiss"


def test_the_tables_are_small_and_say_where_each_row_is_from() -> None:
    assert sum(path.stat().st_size for path in TABLES.values()) < 8e6
    for path in TABLES.values():
        read_table([path], "pool", deep=True)
        rows = pq.read_table(path, columns=["style", "license", "source", "name", "keywords"])
        licenses = {(row["style"], row["license"]) for row in rows.to_pylist()}
        assert licenses == {("Noto", "Apache-2.0"), ("Twemoji", "CC-BY-4.0")}


def test_no_two_tables_share_a_picture_a_twin_or_an_emoji() -> None:
    looks, splits, codes = [], [], defaultdict(set)
    for split, path in TABLES.items():
        for row in pq.read_table(path, columns=["record_id", "image"]).to_pylist():
            looks.append(look(decode_image(row["image"])))
            splits.append(split)
            codes[row["record_id"].rpartition("-")[0]].add(split)
    assert all(len(found) == 1 for found in codes.values())
    groups, _ = grouped(np.concatenate(looks))
    together = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        together[group].add(split)
    assert all(len(found) == 1 for found in together.values())


def test_held_out_compositions_are_in_no_other_table() -> None:
    """Both of their parts are, by themselves."""
    shown = defaultdict(set)
    held_out = {}
    for split, path in TABLES.items():
        for row in pq.read_table(path, columns=["name", "composition"]).to_pylist():
            name = parse(row["name"])
            shown[split].add((name.what, name.who))
            if row["composition"] == "held-out":
                held_out[name.what, name.who] = split
    assert Counter(held_out.values()).keys() == {"validation", "test"}
    for pair, split in held_out.items():
        for other in SPLITS:
            assert other == split or pair not in shown[other], (pair, other)
        assert any(what == pair[0] for what, _ in shown["train"]), pair


def test_the_shipped_model_reads_the_emoji_and_fits_its_config() -> None:
    """Far above chance on records that it has not seen, so that weights and code stay together."""
    config = load_config(PROJECT / "configs/emoji.yaml")
    folder = PROJECT / config.model.checkpoint
    assert sum(path.stat().st_size for path in folder.parent.rglob("*") if path.is_file()) < 10e6
    model = load_model(config.model.family, folder, "cpu")
    rows = read_table([TABLES["validation"]], "pool").slice(0, 48).to_pylist()
    pictures = [decode_image(row["image"]) for row in rows]
    answers = ask(model, model.see(pictures), [row["questions"] for row in rows])
    assert np.mean([one.right for found in answers for one in found]) > 0.75
    again = model.decode(model.encode(pictures))
    errors = [
        np.mean((np.asarray(a, np.float64) - np.asarray(b)) ** 2)
        for a, b in zip(pictures, again, strict=True)
    ]
    assert -10 * np.log10(np.mean(errors) / 255**2) > 17
    scorer = CaptionScorer.of(config.scoring, "cpu")
    said = ["woman cook: dark skin tone, Noto", "man cook: dark skin tone, Noto"]
    same, other = scorer.score(said, [[said[0]], [said[0]]])
    assert same > 0.99 > other
