"""Judges: who is independent, what readers can learn, and that no judge is blind."""

import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from showo_tiny import tiny_model
from tiny_judges import clip, siglip

from core.artifact import ArtifactRef
from core.config import Config
from core.errors import UserError
from core.stage import run_stage
from core.store import Store
from data.questions import QuestionRow
from data.shapes.records import Record, make_records
from data.shapes.scene import COLORS, Split
from data.tables import decode_image, read_table, write_table
from evals.judges.catalog import open_judge, provenance_of, read_record
from evals.judges.encoder import CHOICES, EncoderJudge, caption_question
from evals.judges.nearest import PICTURES
from evals.judges.reader import Reader, ReaderNetwork
from evals.networks.clip_similarity import ClipSimilarity
from tasks.judge import STAGE
from tests.loops import quick
from tests.stage_inputs import make_config, publish

Row = dict[str, Any]
OTHERS = ("chance", "shuffled")
LEADS = [f"{seen} - {other}" for seen in ("real", "reconstructed") for other in OTHERS]
MOODS = ("happy", "sad", "bored")


@cache
def lone_objects(split: Split) -> list[Record]:
    """Scenes of the shapes world with one object, which its image tokenizer can draw."""
    return [record for record in make_records(500, split, 0) if len(record.scene.objects) == 1]


def colors(split: Split, count: int) -> list[Row]:
    """Pictures of one object, asked about its colour and about what no picture shows."""
    rows = []
    for number, record in enumerate(lone_objects(split)[:count]):
        color = record.scene.objects[0].color
        mood = MOODS[int(np.random.default_rng(number).integers(len(MOODS)))]
        asked = {
            "color": ("what color is it?", list(COLORS), color),
            "mood": ("what is its mood?", list(MOODS), mood),
        }
        questions = [
            {"type": kind, "question": question, "choices": choices, "answer": answer}
            for kind, (question, choices, answer) in asked.items()
        ]
        rows.append(record.row() | {"questions": questions})
    assert len(rows) == count
    return rows


def base_of(store: Store) -> ArtifactRef:
    """The base of the shapes world as an artifact."""
    folder = Path(quick("unused").model.checkpoint)
    with store.draft("base", "1" * 64) as draft:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            with draft.write(f"model/{file.relative_to(folder)}") as path:
                shutil.copyfile(file, path)
        return draft.publish({"results": {}})


def judge(store: Store, config: Config, pool: Sequence[Row], test: Sequence[Row]) -> ArtifactRef:
    inputs = {
        "pool": publish(store, "pool", [list(pool)]),
        "test": publish(store, "pool", [list(test)]),
        "base": base_of(store),
    }
    return run_stage(STAGE, config, store, inputs).ref


def reading(pictures: int, networks: int = 1, **changes: object) -> Config:
    settings = {"networks": networks, "pictures": pictures}
    return make_config(
        evaluation__judge="reader", evaluation__reader=settings, runtime__threads=1, **changes
    )


def test_readers_learn_what_pictures_show_and_leave_out_what_they_do_not(store: Store) -> None:
    made = store.open(judge(store, reading(1500), colors("pool", 160), colors("test", 100)))
    results = made.manifest["results"]
    assert results["independent"] is True
    assert results["types_left_out"] == ["mood"]
    assert read_record(made.path()).types == ("color",)
    rows = read_table(made.path("accuracy.parquet"), "metrics").to_pylist()
    found = {(row["name"], row["group"]): row for row in rows}
    assert found["real", "color"]["value"] > 0.6
    assert found["chance", "color"]["value"] == pytest.approx(1 / len(COLORS))
    least = min(found[name, "mood"]["low"] for name in LEADS)
    assert least <= 0 < min(found[name, "color"]["low"] for name in LEADS)


def test_what_a_reader_says_does_not_depend_on_what_else_it_is_asked() -> None:
    torch.manual_seed(0)
    rows = colors("pool", 6)
    pictures = [decode_image(row["image"]) for row in rows]
    questions = [row["questions"][: 1 + number % 2] for number, row in enumerate(rows)]
    reader = Reader([ReaderNetwork()], None, None, "cpu")
    together = reader.answers(pictures, questions)
    for picture, asked, found in zip(pictures, questions, together, strict=True):
        for question, one in zip(asked, found, strict=True):
            ((alone,),) = reader.answers([picture], [[question]])
            assert alone.right == one.right
            assert alone.probability == pytest.approx(one.probability, abs=1e-5)


def test_the_nearest_real_picture_answers_for_a_drawing(store: Store, tmp_path: Path) -> None:
    """It knows what the pool shows, and what tables beside it show."""
    test = colors("test", 100)
    made = store.open(
        judge(store, make_config(evaluation__judge="nearest"), colors("pool", 160), test)
    )
    record = read_record(made.path())
    assert record.provenance.independent
    assert record.types == ("color",)
    with open_judge(make_config(evaluation__judge="nearest"), made.path(), None, Path()) as nearest:
        real = [decode_image(row["image"]) for row in colors("pool", 160)]
        # Of the colour; pictures that are there twice have two moods.
        questions = [row["questions"][:1] for row in colors("pool", 160)]
        assert all(one.right for row in nearest.answers(real, questions) for one in row)
        other: QuestionRow = {**questions[0][0], "question": "What is it worth?"}
        ((unknown,),) = nearest.answers(real[:1], [[other]])
        assert unknown.answered
        assert not unknown.prediction
        assert not unknown.right
    beside = tmp_path / "more.parquet"
    write_table(beside, "pool", colors("pool", 160)[40:])
    config = make_config(evaluation__judge="nearest", evaluation__records=str(beside))
    again = store.open(judge(store, config, colors("pool", 160)[:40], test))
    assert np.array_equal(*(np.load(one.path(PICTURES)) for one in (made, again)))


def test_records_for_no_learning_judge_are_refused() -> None:
    with pytest.raises(ValueError, match=r"records = 'x', but judge = 'oracle' learns from none"):
        make_config(evaluation__judge="oracle", evaluation__records="x")


@pytest.mark.slow
def test_readers_are_the_same_whoever_trains_them_and_go_on_after_a_kill(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import evals.judges.reader as reader

    whole = judge(store, reading(480, 2), colors("pool", 80), colors("test", 80))
    trained = reader.train_network

    def killed(*arguments: Any) -> Any:
        if arguments[2] == 1:
            raise KeyboardInterrupt
        return trained(*arguments)

    other = Store(str(tmp_path / "other"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reader, "train_network", killed)
        judge(other, reading(480, 2), colors("pool", 80), colors("test", 80))
    numbers = []

    def counted(*arguments: Any) -> Any:
        numbers.append(arguments[2])
        return trained(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(reader, "train_network", counted)
        again = judge(other, reading(480, 2), colors("pool", 80), colors("test", 80))
    assert numbers == [1]
    assert again.digest == whole.digest


def test_a_judge_that_reads_nothing_is_refused(store: Store) -> None:
    blind = [
        {**row, "questions": [q for q in row["questions"] if q["type"] == "mood"]}
        for row in colors("pool", 120)
    ]
    with pytest.raises(UserError, match=r"readers .* cannot judge this pool: right about"):
        judge(store, reading(256), blind[:60], blind[60:])


def test_encoders_of_random_weights_or_none_are_refused(store: Store, tmp_path: Path) -> None:
    config = make_config(
        evaluation__judge="encoder", evaluation__folder=str(clip(tmp_path / "clip"))
    )
    with pytest.raises(UserError, match="the encoder clip cannot judge this pool"):
        judge(store, config, colors("pool", 40), colors("test", 40))
    (tmp_path / "empty").mkdir()
    config = make_config(evaluation__judge="encoder", evaluation__folder=str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"evaluation.folder: .*config.json cannot be read"):
        judge(store, config, colors("pool", 40), colors("test", 40))


def test_captions_to_tell_from_each_other_say_different_things() -> None:
    captions = ["a red ball", "The red ball!", "two cats", "a blue hat", "a dog in the rain"]
    question = caption_question("r1", "a red ball", captions)
    assert question is not None
    assert len(set(question["choices"])) == CHOICES
    assert "The red ball!" not in question["choices"]
    assert question == caption_question("r1", "a red ball", captions)
    assert caption_question("r1", "a red ball", captions[:3]) is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def relative(folder: Path, name: str, change: Any) -> Path:
    """A copy of a model folder with changed weights."""
    copy = folder.parent / name
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    save_file(
        {k: change(k, v).contiguous() for k, v in weights.items()}, copy / "model.safetensors"
    )
    return copy


def noise(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)

    def other(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator) * tensor.std().nan_to_num(1.0)

    return other


CHANGES = {
    "the same": (lambda name, tensor: tensor, False),
    "half precision": (lambda name, tensor: tensor.bfloat16(), False),
    "trained": (
        lambda name, tensor: tensor + 0.05 * tensor.std().nan_to_num() * torch.randn_like(tensor),
        False,
    ),
    "averaged": (lambda name, tensor: 0.7 * tensor + 0.3 * noise(1)(name, tensor), False),
    "another training": (noise(2), True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_checkpoint_judges_only_if_it_is_no_relative(folder: Path, name: str) -> None:
    change, independent = CHANGES[name]
    other = relative(folder, "judge", change)
    config = make_config(evaluation__judge="checkpoint", evaluation__folder=str(other))
    found = provenance_of(config, folder)
    assert found.independent is independent
    assert "of its weights" in found.why


def test_the_base_never_judges_as_somebody_else(folder: Path) -> None:
    assert provenance_of(make_config(evaluation__judge="base"), folder).independent is False


class _ColorClip:
    """An encoder that sees nothing but the colours that captions name."""

    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        means = [np.asarray(image, np.float64).reshape(-1, 3).mean(0) for image in images]
        return np.stack([mean / np.linalg.norm(mean) for mean in means])

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        axes = {"red": 0, "green": 1, "blue": 2}
        return np.stack([np.eye(3)[next(axes[c] for c in axes if c in text)] for text in texts])

    def num_cut(self, texts: Sequence[str]) -> int:
        return 0


def test_an_encoder_takes_the_caption_that_is_nearest() -> None:
    eye: Any = _ColorClip()
    seen = EncoderJudge(eye, ["a red hat in the rain", "one blue cat asleep"])
    records = [{"record_id": "r", "prompt": "two green birds that fly", "questions": []}]
    [asked] = seen.questions(records)
    assert len(asked) == 0, "too few captions that differ"
    more = EncoderJudge(
        eye, ["a red hat in rain", "one blue cat asleep", "red wine", "blue jeans on a line"]
    )
    [[question]] = more.questions(records)
    assert question["answer"] == "two green birds that fly"
    pictures = [Image.new("RGB", (8, 8), color) for color in ((10, 200, 10), (200, 10, 10))]
    [[right], [wrong]] = more.answers(pictures, [[question], [question]])
    assert right.right
    assert right.probability > 0.99
    assert not wrong.right


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_encoders_of_known_kinds_give_unit_vectors_and_count_what_is_cut(
    tmp_path: Path, kind: str
) -> None:
    folder = {"clip": clip, "siglip": siglip}[kind](tmp_path / kind)
    encoder = ClipSimilarity(folder, "cpu")
    for vectors in (encoder.images([Image.new("RGB", (20, 12))]), encoder.texts(["a red cat"])):
        assert np.linalg.norm(vectors, axis=1) == pytest.approx([1.0])
    assert encoder.num_cut(["a red cat", "the red cat and the dog " * 20]) == 1


def test_an_encoder_of_another_kind_is_named(tmp_path: Path) -> None:
    folder = clip(tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "blip"}))
    with pytest.raises(UserError, match=r"type 'blip'; known .*: clip, siglip"):
        ClipSimilarity(folder, "cpu")
