"""The tiny Show-o model of the parity files, whole, for tests."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import PhiConfig

from models.families.showo.config import ShowoConfig
from models.families.showo.model import ShowoModel
from models.families.showo.network import Showo
from models.families.showo.prompts import ShowoTokenizer
from models.protocol import PairBatch, Seen
from models.tokenizers.magvitv2 import MAGVITv2

PARITY = Path(__file__).parent / "parity"
QUESTIONS = [
    [("What color is the cat?", ["red", "blue"]), ("How many balls?", ["a", "a red", "the dog"])],
    [("Is the mat red?", ["the", "a cat", "a"])],
    [],
]


@cache
def tiny_model() -> ShowoModel:
    config = ShowoConfig.from_json(PARITY / "showo_tiny/config.json")
    network = Showo(config)
    network.load_state_dict(load_file(PARITY / "showo_tiny/model.safetensors"))
    vq = MAGVITv2.from_pretrained(PARITY / "magvitv2_tiny")
    return ShowoModel(network, vq, ShowoTokenizer.from_pretrained(PARITY / "tokenizer_tiny"))


def phi_config(config: ShowoConfig) -> PhiConfig:
    """How transformers' Phi is told to be the one of a network."""
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    same += ("num_attention_heads", "max_position_embeddings", "layer_norm_eps")
    rope = {name: getattr(config, name) for name in ("rope_theta", "partial_rotary_factor")}
    phi = PhiConfig(
        **{name: getattr(config, name) for name in same},
        rope_parameters={"rope_type": "default"} | rope,
        qk_layernorm=True,
    )
    phi._attn_implementation = "eager"
    return phi


def random_codes(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 64, shape)


def pair_batch(num_masks: int = 1) -> PairBatch:
    return PairBatch(
        seen=Seen(random_codes(3, 16, seed=1)),
        captions_win=["a red cat", "the dog and the cat", "a big table"],
        captions_lose=["the blue ball", "a cat", "a red mat on the table"],
        prompts=["a red cat", "", "a small red ball on a big table and a blue cat on the red mat"],
        drawn_win=random_codes(3, 16, seed=2),
        drawn_lose=random_codes(3, 16, seed=3),
        draw_seeds=[5, 6, 7],
        unprompted=[False] * 3,
        num_draws=num_masks,
    )


def tensors(values: object) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values))
