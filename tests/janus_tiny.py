"""The small Janus of the parity files, as a model and as a published folder."""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from transformers.models.janus.modeling_janus import JanusVQVAE

from models.families.janus.config import OWN, Preprocessing
from models.families.janus.model import JanusModel, Kept
from models.families.janus.network import Janus
from models.families.janus.parity import JanusFixture, kit_sizes
from models.families.janus.vq import JanusVQ
from tests.published import save_weights
from tests.showo_tiny import PARITY

KEYS = PARITY / "janus_full_keys.json"


@cache
def fixture() -> JanusFixture:
    """The published numbers."""
    return JanusFixture(PARITY / "janus_tiny")


def tiny_janus() -> JanusModel:
    """A model of its own with the published weights."""
    return fixture().model(fixture().weights)


def published_folder(folder: Path, layout: str) -> Path:
    """Its checkpoint as the published code has it."""
    shutil.copytree(PARITY / "janus_tiny/tokenizer", folder)
    stored = json.loads((PARITY / "janus_tiny/config.json").read_text())
    kit = stored.pop("_kit")
    stored[OWN] = {"sizes": kit_sizes(kit), "settings": {"max_text_len": 64}}
    (folder / "config.json").write_text(json.dumps(stored))
    prepared = {name: value for name, value in kit["preprocessor"].items() if name != "background"}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared))
    save_weights(fixture().weights, folder, layout)
    return folder


def random_janus(seed: int = 0) -> JanusModel:
    """One that draws pictures of 32 pixels, as the shapes world has them; weights are random."""
    config = fixture().config
    sizes = config.sizes.to_dict()
    sizes["vision_config"] |= {"image_size": 32, "patch_size": 8}
    sizes["vq_config"] |= {"channel_multiplier": [1, 1, 1, 1]}
    prepared = Preprocessing(image_size=32)
    made = replace(config, sizes=type(config.sizes)(**sizes), preprocessing=prepared)
    made.check(Path("config.json"))
    torch.manual_seed(seed)
    network, vq = Janus(made).eval(), JanusVQ(JanusVQVAE(made.vq))
    return JanusModel(network, vq, tiny_janus().tokenizer, Kept())
