"""What the base is trained on, and how."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.shapes.oracle import read
from data.shapes.records import make_records
from data.shapes.scene import split_of
from models.registry import load_model
from tasks.pretrain.base import Learner, Recipe, Scenes, pretrain, word_tokenizer
from tasks.pretrain.families import family_named
from tasks.pretrain.tokenizer import BitTokenizer, to_pixels

ASSETS = Path(__file__).parents[1] / "models/assets/shapes/base"


FAMILIES = ["showo", "janus", "vila_u"]


def new_learner(name: str) -> Learner:
    """That of the shapes world, with a tokenizer of random weights."""
    family = family_named(name)
    words = word_tokenizer(family.sentences, family.specials)
    return family.learner(family.shipped.bits(), words, family.shipped.sizes)


def test_no_whole_picture_is_of_another_split() -> None:
    recipe = Recipe(num_scenes=12_000)
    # What a family makes of a picture has no part in which pictures there are.
    blind: Any = SimpleNamespace(see=np.zeros_like, draw=np.zeros_like)
    corpus = Scenes(blind, recipe, np.random.default_rng(0))
    shown = corpus.scenes + [s for s in corpus.broken_scenes if not s.malformed]
    assert {split_of(scene) for scene in shown} == {"train"}
    assert len(corpus.broken_scenes) == len(corpus.broken_seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_pretraining_is_reproducible(family: str) -> None:
    recipe = Recipe(steps=3, warmup=1, t2i_rows=4, mmu_rows=4, num_scenes=60)
    one, same = (pretrain(lambda: new_learner(family), recipe, seed=3).network for _ in range(2))
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


@pytest.mark.parametrize("family", ["janus", "vila_u"])
@pytest.mark.parametrize("num_bits", [8, 6])
def test_codes_are_the_signs_of_the_encoder(family: str, num_bits: int) -> None:
    """So that bits named by a tree are a codebook of vectors, or those of two depths."""
    torch.manual_seed(0)
    made = family_named(family)
    sizes = replace(made.shipped.sizes, image_size=32, bits=num_bits)
    bits: BitTokenizer = made.bits(sizes)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        signs_BNZ = (bits.bits(pixels) > 0).flatten(2).transpose(1, 2).long()
        codes_BN = bits.codes(pixels)
        assert torch.equal(codes_BN, (signs_BNZ * 2 ** torch.arange(num_bits)).sum(-1))
        decoded = bits.pixels(signs_BNZ.transpose(1, 2).unflatten(2, (4, 4)) * 2.0 - 1)
        torch.testing.assert_close(decoded, bits.decoded(codes_BN))


def test_a_vila_u_reads_and_draws_the_residual_codes_of_its_tower() -> None:
    """Each depth names four bits, whatever the others are."""
    family = family_named("vila_u")
    sizes = replace(family.shipped.sizes, image_size=32)
    bits = family.bits(sizes)
    words = word_tokenizer(family.sentences, family.specials)
    learner = family.learner(bits, words, sizes)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    codes_BND = learner.draw(pictures)
    assert np.array_equal(learner.see(pictures), codes_BND)
    with torch.no_grad():
        whole_BN = bits.codes(to_pixels(pictures)).numpy()
    assert np.array_equal(codes_BND @ [1, 16], whole_BN)
    assert codes_BND.max() < 16
