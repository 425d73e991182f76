"""What the base is trained on, and how."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.shapes.oracle import read
from data.shapes.records import make_records
from data.shapes.scene import split_of
from models.families.janus.vq import JanusVQ
from models.registry import load_model
from models.tokenizers.magvitv2 import MAGVITv2
from tasks.pretrain.base import Learner, Recipe, Scenes, pretrain
from tasks.pretrain.janus import JanusBits, JanusLearner
from tasks.pretrain.showo import ShowoLearner
from tasks.pretrain.tokenizer import BitTokenizer, to_pixels
from tasks.pretrain.vila_u import TowerBits, VilaULearner

ASSETS = Path(__file__).parents[1] / "models/assets/shapes/base"


LEARNERS = [
    lambda: ShowoLearner(MAGVITv2.from_pretrained(ASSETS / "vq")),
    lambda: JanusLearner(JanusVQ(JanusBits(32).module), 32),
    lambda: VilaULearner(TowerBits(32).module.requires_grad_(False)),
]


def test_no_whole_picture_is_of_another_split() -> None:
    recipe = Recipe(num_scenes=12_000)
    corpus = Scenes(LEARNERS[0](), recipe, np.random.default_rng(0))
    shown = corpus.scenes + [s for s in corpus.broken_scenes if not s.malformed]
    assert {split_of(scene) for scene in shown} == {"train"}
    assert len(corpus.broken_scenes) == len(corpus.broken_seen)


@pytest.mark.parametrize("make", LEARNERS, ids=["showo", "janus", "vila_u"])
def test_pretraining_is_reproducible(make: Callable[[], Learner]) -> None:
    recipe = Recipe(steps=3, warmup=1, t2i_rows=4, mmu_rows=4, num_scenes=60)
    one, same = (pretrain(make, recipe, seed=3).network for _ in range(2))
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name


@pytest.mark.parametrize(
    ("family", "folder"),
    [("showo", "shapes/base"), ("janus", "shapes/janus"), ("vila_u", "shapes/vila_u")],
)
def test_shipped_models_read_and_draw_the_world(family: str, folder: str) -> None:
    """Far above chance, so that weights and code cannot part ways unseen."""
    model = load_model(family, ASSETS.parents[1] / folder, "cpu")
    records = make_records(24, "validation", 5)
    images = [Image.fromarray(record.image()) for record in records]
    asked = [[(q.question, q.choices) for q in record.questions] for record in records]
    answers = model.answer(model.see(images), asked)
    right = [
        q.choices[int(p.argmax())] == q.answer
        for record, found in zip(records, answers, strict=True)
        for q, p in zip(record.questions, found, strict=True)
    ]
    assert np.mean(right) > 0.9
    drawn = model.encode(images)
    again = read(np.stack([np.asarray(image) for image in model.decode(drawn)]))
    assert again == [record.scene for record in records]


@pytest.mark.parametrize("make", [JanusBits, TowerBits])
def test_codes_are_the_signs_of_the_encoder(make: Callable[[int], BitTokenizer]) -> None:
    """So that bits named by a tree are a codebook of vectors, or those of two depths."""
    torch.manual_seed(0)
    bits = make(32)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        signs_BNZ = (bits.bits(pixels) > 0).flatten(2).transpose(1, 2).long()
        codes_BN = bits.codes(pixels)
        assert torch.equal(codes_BN, (signs_BNZ * 2 ** torch.arange(8)).sum(-1))
        decoded = bits.pixels(signs_BNZ.transpose(1, 2).unflatten(2, (4, 4)) * 2.0 - 1)
        torch.testing.assert_close(decoded, bits.decoded(codes_BN))


def test_a_vila_u_reads_and_draws_the_residual_codes_of_its_tower() -> None:
    """Each depth names four bits, whatever the others are."""
    bits = TowerBits(32)
    learner = VilaULearner(bits.module)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    codes_BND = learner.draw(pictures)
    assert np.array_equal(learner.see(pictures), codes_BND)
    with torch.no_grad():
        whole_BN = bits.codes(to_pixels(pictures)).numpy()
    assert np.array_equal(codes_BND @ [1, 16], whole_BN)
    assert codes_BND.max() < learner.network.config.num_entries == 16
