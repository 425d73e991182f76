"""What the base is trained on, and how."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.shapes.scene import split_of
from models.tokenizers.magvitv2 import MAGVITv2
from tasks.pretrain.base import Corpus, Recipe, pretrain

ASSETS = Path(__file__).parents[1] / "models/assets/shapes/base"


@pytest.fixture(scope="module")
def vq() -> MAGVITv2:
    return MAGVITv2.from_pretrained(ASSETS / "vq")


def test_no_whole_picture_is_of_another_split(vq: MAGVITv2) -> None:
    corpus = Corpus(vq, 12_000, 0, np.random.default_rng(0))
    shown = corpus.scenes + [s for s in corpus.broken_scenes if not s.malformed]
    assert {split_of(scene) for scene in shown} == {"train"}
    assert len(corpus.broken_scenes) == len(corpus.broken_ids_BN)


def test_pretraining_is_reproducible(vq: MAGVITv2) -> None:
    recipe = Recipe(steps=3, warmup=1, t2i_rows=4, mmu_rows=4)
    one, same = (pretrain(vq, recipe, num_scenes=60, seed=3) for _ in range(2))
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name
