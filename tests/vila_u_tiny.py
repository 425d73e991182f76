"""The small VILA-U of the parity files, as a model and as a published folder."""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from models.families.vila_u.config import OWN
from models.families.vila_u.convert import FOLDERS
from models.families.vila_u.model import Kept, VilaUModel
from models.families.vila_u.network import VilaU
from models.families.vila_u.parity import VilaUFixture, kit_own
from models.families.vila_u.tower import Tower
from tests.published import save_weights
from tests.showo_tiny import PARITY

TINY = PARITY / "vila_u_tiny"
KEYS = PARITY / "vila_u_full_keys.json"


@cache
def fixture() -> VilaUFixture:
    """The published numbers."""
    return VilaUFixture(TINY)


def tiny_vila_u() -> VilaUModel:
    """A model of its own with the published weights."""
    return fixture().model(fixture().weights)


def published_folder(folder: Path, layout: str) -> Path:
    """Its checkpoint as the published code has it."""
    for part in FOLDERS:
        weights = shutil.ignore_patterns("model.safetensors")
        shutil.copytree(TINY / part, folder / part, ignore=weights)
        begin = f"{part}."
        of_part = {
            name.removeprefix(begin): tensor
            for name, tensor in fixture().weights.items()
            if name.startswith(begin)
        }
        save_weights(of_part, folder / part, layout)
    stored = json.loads((TINY / "config.json").read_text())
    stored[OWN] = kit_own(stored.pop("_kit"))
    (folder / "config.json").write_text(json.dumps(stored))
    return folder


def random_vila_u(seed: int = 0) -> VilaUModel:
    """One that reads and draws pictures of 32 pixels, with a codebook for each depth."""
    config = fixture().config
    quantiser, depths = config.tower.rqvaesiglip, config.tower.rqtransformer
    decoder = replace(quantiser.ddconfig, ch_mult=(1,) * 5, resolution=32, attn_resolutions=())
    shape, apart = (2, 2, 4), {"n_embed": 64, "shared_codebook": False}
    small = replace(quantiser, code_shape=shape, ddconfig=decoder, **apart)
    drawn = replace(depths, vocab_size=64, block_size=shape)
    siglip = replace(config.siglip, image_size=32, patch_size=16)
    tower = replace(config.tower, rqvaesiglip=small, rqtransformer=drawn)
    made = replace(config, tower=tower, siglip=siglip)
    made.check(Path("config.json"))
    torch.manual_seed(seed)
    return VilaUModel(VilaU(made).eval(), Tower(made), tiny_vila_u().tokenizer, Kept())
