"""What the tests of families that draw code by code have in common."""

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from core.artifact import Artifact
from models.protocol import Autoregressive, TextSampling
from tests.stage_inputs import make_config
from tests.test_train import Loop

PICTURES = [
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 29, 3), dtype=np.uint8))
    for i in range(3)
]
WAYS_TO_TRAIN: tuple[Mapping[str, object], ...] = (
    {"training__lora": {"rank": 2, "alpha": 4}},
    {"model__precision": "bfloat16"},
    {"runtime__recompute": True, "training__objective__combine": "joint"},
)


def same(one: Any, other: Any, how: Autoregressive) -> bool:
    """All weights bit by bit, and what is drawn and said."""
    mine, theirs = one.state_dict(), other.state_dict()
    return (
        mine.keys() == theirs.keys()
        and all(torch.equal(mine[name].float(), theirs[name].float()) for name in mine)
        and np.array_equal(*(m.generate(["a cat"], 2, how, [3]) for m in (one, other)))
        and one.caption(one.see(PICTURES), [TextSampling(1.0, 1, 5)], [0] * 3)
        == other.caption(other.see(PICTURES), [TextSampling(1.0, 1, 5)], [0] * 3)
    )


def change_sizes(folder: Path, where: Sequence[str], value: object) -> None:
    """Put a value into the config.json of a folder."""
    path = folder / "config.json"
    stored = json.loads(path.read_text())
    reduce(getitem, where[:-1], stored)[where[-1]] = value
    path.write_text(json.dumps(stored))


def trained(folder: Path, family: str, model: Any, changes: Mapping[str, object]) -> Artifact:
    """The checkpoint of a short Pair-DPO on a model's own codes."""
    images = {"sampler": "autoregressive", "num_samples": 2, "guidance": 0.0, "temperature": 1.0}
    fixed = {"model__family": family, "sampling__images": images, "training__image_draws": 0}
    return Loop(folder, model).train(make_config(**fixed, **changes))
