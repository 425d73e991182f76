"""Pictures with captions and nothing else: questions by rules, readers judge, one command."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from PIL import Image

from core.config import load_config, schema
from core.errors import UserError
from core.store import Store
from data.caption_questions import phrases, words_of, write_questions
from data.questions import normalised
from data.shapes.records import make_records
from flows.own import prepare, profile_of
from tests.loops import QUICK, play

BASE = Path("models/assets/shapes/base").resolve()
CAPTIONS = [
    "Two small dogs playing in the green grass near a red ball.",
    "A man riding a brown horse on the beach.",
    "A white plate topped with three slices of pizza.",
    "The cat is sleeping on an old wooden chair.",
    "A group of people standing around a table with a large cake.",
    "A woman wearing a blue hat holding a black umbrella.",
    "A bunch of ripe bananas hanging in a market.",
    "Five birds sitting on a wire above the street.",
    "A young boy throwing a frisbee in a park.",
    "woman firefighter: dark skin tone",
]
WORDS = words_of(CAPTIONS)


def asked(caption: str, most: int = 9) -> dict[str, dict[str, Any]]:
    return {q["type"]: dict(q) for q in write_questions(caption, caption, WORDS, most)}


def test_phrases_are_found_with_their_heads() -> None:
    found = {p.head: p for p in phrases(CAPTIONS[0])}
    assert (found["dogs"].count, found["dogs"].modifiers) == (2, ("small",))
    assert found["grass"].modifiers == ("green",)
    assert [p.head for p in phrases(CAPTIONS[2])] == ["plate", "slices"]
    assert [p.head for p in phrases("a red heart left of a circle")] == ["heart", "circle"]
    assert [p.head for p in phrases(CAPTIONS[4])] == ["table", "cake"]


def test_questions_ask_what_a_caption_says() -> None:
    dogs = asked(CAPTIONS[0])
    assert (dogs["counting"]["question"], dogs["counting"]["answer"]) == (
        "How many dogs are there?",
        "two",
    )
    assert dogs["color"]["answer"] in ("green", "red")
    assert dogs["caption"]["answer"] == CAPTIONS[0]
    assert asked(CAPTIONS[1])["activity"]["answer"] == "riding"
    assert asked(CAPTIONS[9])["word"]["question"].count("___") == 1


@pytest.mark.parametrize("caption", CAPTIONS)
def test_every_question_has_one_right_choice_of_four_that_differ(caption: str) -> None:
    questions = write_questions("r", caption, WORDS, 9)
    assert questions
    assert questions == write_questions("r", caption, WORDS, 9)
    assert len({normalised(q["question"]) for q in questions}) == len(questions)
    for question in questions:
        choices = [normalised(choice) for choice in question["choices"]]
        assert len(set(choices)) == 4
        assert choices.count(normalised(question["answer"])) == 1
        wrong = set(choices) - {normalised(question["answer"])}
        if question["type"] == "object":
            said = set(normalised(caption).split())
            assert not wrong & said, "a wrong choice is right"


def test_right_answers_are_nowhere_more_often() -> None:
    """Else a position would be the answer."""
    places = Counter(
        q["choices"].index(q["answer"])
        for n in range(40)
        for caption in CAPTIONS
        for q in write_questions(f"r{n}", caption, WORDS, 6)
    )
    total = sum(places.values())
    assert all(0.18 < places[place] / total < 0.32 for place in range(4))


def test_persons_are_no_wrong_choice_for_persons() -> None:
    for n in range(50):
        for q in write_questions(f"r{n}", CAPTIONS[1], WORDS, 9):
            if q["type"] == "object":
                assert not {"woman", "boy", "people"} & set(q["choices"])


def pictures(folder: Path, number: int) -> Path:
    """A folder as people have it: pictures and a table of captions."""
    folder.mkdir()
    lines = []
    for record in make_records(number, "pool", 0):
        Image.fromarray(record.image()).save(folder / f"{record.record_id}.png")
        lines.append({"file_name": f"{record.record_id}.png", "caption": record.caption})
    text = "\n".join(map(json.dumps, lines))
    (folder / "metadata.jsonl").write_text(text + "\n", encoding="utf-8")
    return folder


def test_the_config_beside_a_pool_names_its_profile_and_the_schema(tmp_path: Path) -> None:
    (tmp_path / "data/test").mkdir(parents=True)
    path = prepare("pictures", BASE, None, tmp_path)
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    assert Path(first.removeprefix(schema.MODELINE)) == schema.FILE
    jsonschema.validate(yaml.safe_load("\n".join(rest)), schema.editor_schema())
    assert load_config(path).data.source == "parquet"


def test_an_encoder_of_ones_own_is_written_down_or_refused(tmp_path: Path) -> None:
    (tmp_path / "data/test").mkdir(parents=True)
    mine = BASE.with_name("caption_encoder")
    path = prepare("pictures", BASE, mine, tmp_path)
    assert Path(load_config(path).scoring.caption_encoder) == mine.resolve()
    assert prepare("pictures", BASE, mine, tmp_path) == path
    assert prepare("pictures", BASE, None, tmp_path) == path
    with pytest.raises(UserError, match=r"there already and has scoring\.caption_encoder"):
        prepare("pictures", BASE, tmp_path / "other", tmp_path)


@pytest.mark.slow
def test_one_command_leads_from_pictures_to_a_loop(tmp_path: Path) -> None:
    """The base reads some types of questions by rules; readers judge what it can draw of them."""
    source = pictures(tmp_path / "mine", 240)
    path = prepare(str(source), BASE, None, tmp_path / "run")
    assert prepare(str(source), BASE, None, tmp_path / "run") == path
    settings = yaml.safe_load(path.read_text())
    # As the command writes it, on few records and with few steps.
    quickened = {**settings, "extends": str(QUICK)}
    path.write_text(yaml.safe_dump(quickened))
    changes = {
        "tracking.enabled": False,
        "runtime.threads": 1,
        "iterations": 1,
        "evaluation.reader": {"networks": 1, "pictures": 2560},
        "pairing.caption.min_best": -1.0,
    }
    config = load_config(path, changes)
    assert config.registered_model == "hermesflow-run"
    runner, table = play(config)
    names = [name for name, _, _ in runner.done]
    assert names.count("questions") == 2
    store = Store(config.store)
    written = next(store.open(r.ref) for name, _, r in runner.done if name == "questions")
    results = written.manifest["results"]
    assert results["from/rules"] == results["questions"] > 100
    assert any(name.startswith("U/") and value for name, value in results.items())
    assert "readers trained on real pictures" in table
    assert "malformed" not in table
    assert "single object" not in table


def test_what_is_no_model_is_refused_before_the_pictures_are_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no model folder"):
        prepare("nowhere", tmp_path, None, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("pixels", "width", "profile"),
    [(384, 2048, "janus_pro_1b"), (384, 4096, "janus_pro_7b"), (32, 64, "shapes_janus")],
)
def test_a_janus_gets_the_profile_of_its_size(
    tmp_path: Path, pixels: int, width: int, profile: str
) -> None:
    sizes = {"vision_config": {"image_size": pixels}, "text_config": {"hidden_size": width}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "janus", **sizes}))
    path = profile_of(tmp_path)
    assert path.stem == profile
    assert load_config(path, {}).model.family == "janus"


@pytest.mark.parametrize(
    ("pixels", "profile"), [(256, "vila_u_7b_256"), (384, "vila_u_7b_384"), (32, "shapes_vila_u")]
)
def test_a_vila_u_gets_the_profile_of_its_pictures(
    tmp_path: Path, pixels: int, profile: str
) -> None:
    stored = {"model_type": "vila_u", "siglip": {"image_size": pixels}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    path = profile_of(tmp_path)
    assert path.stem == profile
    assert load_config(path, {}).model.family == "vila_u"


@pytest.mark.parametrize("questions", [{"by": "captions", "endpoint": "x"}, {"by": "model"}])
def test_who_writes_and_the_endpoint_go_together(questions: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    rest = {"endpoint": None, "per_record": 3, "max_without": 0.1}
    path.write_text(yaml.safe_dump({"extends": str(QUICK), "questions": {**rest, **questions}}))
    with pytest.raises(UserError, match="questions"):
        load_config(path)
