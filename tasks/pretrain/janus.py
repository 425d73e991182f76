"""The Janus of the shapes world: a small vision tower that learns to read, codes drawn in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusVQVAE

from models.families.janus.config import HF_TYPE, OWN, JanusConfig
from models.families.janus.likelihood import drawn_picture
from models.families.janus.model import JanusModel, Kept
from models.families.janus.network import Janus
from models.families.janus.prompts import NAMES, JanusTokenizer
from models.families.janus.vq import JanusVQ
from models.nn.packing import Segment, Tree
from models.tokenizers.chat import CAPTION_QUESTION
from tasks.pretrain.base import Ids, Images, Rng
from tasks.pretrain.chat import (
    RECIPE,
    SHAPES,
    TOWER_HEADS,
    ChatLearner,
    llama,
    signs,
    tower_width,
)
from tasks.pretrain.families import Family, Shipped, Sizes, fast_tokenizer
from tasks.pretrain.tokenizer import TokenizerRecipe, to_pixels

ROLES = ("<|User|>", "<|Assistant|>")


def base_config(vocab_size: int, sizes: Sizes) -> JanusConfig:
    """The config of a small network; the image tokenizer has as many channels at every level."""
    levels = int(sizes.patch).bit_length()
    settings = {
        "model_type": HF_TYPE,
        "text_config": {
            "model_type": "llama",
            **llama(sizes),
            "vocab_size": vocab_size,
            **{f"{name}_token_id": list(NAMES).index(name) for name in ("bos", "eos", "pad")},
        },
        "vision_config": {
            "hidden_size": tower_width(sizes.bits),
            "num_hidden_layers": 2,
            "num_attention_heads": TOWER_HEADS,
            "image_size": sizes.image_size,
            "patch_size": sizes.patch,
            "mlp_ratio": 4,
            "projection_dim": sizes.width,
            "num_image_tokens": sizes.side**2,
        },
        "vq_config": {
            "embed_dim": sizes.bits,
            "num_embeddings": 2**sizes.bits,
            "latent_channels": 32,
            "base_channels": sizes.channels,
            "channel_multiplier": [1] * levels,
            "num_res_blocks": 0,
            "projection_dim": sizes.width,
            "image_token_embed_dim": sizes.width,
        },
        OWN: {"max_text_len": sizes.max_text_len, "system": ""},
    }
    config = JanusConfig.from_sizes(settings, Path("config.json"))
    prepared = replace(config.preprocessing, image_mean=sizes.mean, image_std=(0.25, 0.25, 0.25))
    return replace(config, preprocessing=prepared)


class JanusBits:
    """The image tokenizer as `tasks.pretrain.tokenizer` trains it: codes are signs of numbers.

    The codebook has all vectors of signs, so the nearest one by direction has the signs of the
    encoder's.
    """

    def __init__(self, sizes: Sizes) -> None:
        self.module = JanusVQVAE(base_config(len(NAMES), sizes).vq)
        self._length = sizes.bits**0.5
        self.module.quantize.embedding.weight.data.copy_(signs(sizes.bits) / self._length)
        self.module.quantize.requires_grad_(False)

    def bits(self, pixels_B3HW: Tensor) -> Tensor:
        """Logits [B,Z,h,w] of the bits."""
        encoded: Tensor = self.module.quant_conv(self.module.encoder(pixels_B3HW))
        return encoded

    def pixels(self, signs_BZhw: Tensor) -> Tensor:
        """Pixels [B,3,H,W] of signs."""
        decoded: Tensor = self.module.decoder(
            self.module.post_quant_conv(signs_BZhw / self._length)
        )
        return decoded

    def codes(self, pixels_B3HW: Tensor) -> Tensor:
        """Codes [B,N]."""
        return JanusVQ(self.module).encode(pixels_B3HW)

    def decoded(self, codes_BN: Tensor) -> Tensor:
        """Pixels of codes."""
        side = int(codes_BN.shape[1] ** 0.5)
        return JanusVQ(self.module).decode(codes_BN, side, side)


def build_tokenizer(words: Tokenizer, config: JanusConfig) -> JanusTokenizer:
    """Words with the tokens of Janus."""
    named = {f"{role}_token": NAMES[role] for role in ("bos", "eos", "pad")}
    return JanusTokenizer(fast_tokenizer(words, **named), config.settings)


class JanusLearner(ChatLearner):
    """A `tasks.pretrain.base.Learner`."""

    def __init__(self, bits: JanusBits, words: Tokenizer, sizes: Sizes) -> None:
        """A network of random weights, whose vision tower learns too."""
        self.vq = JanusVQ(bits.module)
        tokenizer = build_tokenizer(words, base_config(len(NAMES), sizes))
        self.config = base_config(len(tokenizer), sizes)
        self.network = Janus(self.config).requires_grad_(True)
        super().__init__(self.network, tokenizer)
        self._boi = tokenizer.special.boi
        self._whole = JanusModel(self.network, self.vq, tokenizer, Kept())

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The layers of language model and vision tower."""
        parts = self.network.model
        return [*parts.language_model.layers, *parts.vision_model.encoder.layers]

    def model(self) -> JanusModel:
        """The whole model, whose vision tower does not learn any longer."""
        self.network.model.vision_model.requires_grad_(False)
        return self._whole

    def see(self, images_BHW3: Images) -> NDArray[np.generic]:
        """Bytes of patches [B,F,W] for the vision tower."""
        return self._whole.patches([Image.fromarray(image) for image in images_BHW3])

    @torch.no_grad()
    def draw(self, images_BHW3: Images) -> Ids:
        """Codes [B,N]."""
        parts = np.array_split(images_BHW3, -(-len(images_BHW3) // 256))
        codes: Ids = torch.cat([self.vq.encode(to_pixels(part)) for part in parts]).numpy()
        return codes

    def generation(self, drawn_N: Ids, prompt: str, rng: Rng) -> Tree:
        """A prompt and a picture; an empty one is the row that guidance reads."""
        ids = self._prompt(prompt)
        if not prompt:
            # As long as any prompt: what is left out of guided rows is the words, not the length.
            ids = np.full(len(ids) + int(rng.integers(3, 12)), self.tokenizer.special.pad)
            ids[0], ids[-1] = self.tokenizer.special.bos, self._boi
        return [Segment(ids), drawn_picture(drawn_N, self.config.vocab_size)]


FAMILY = Family(
    bits=JanusBits,
    learner=JanusLearner,
    specials=[*NAMES.values(), *ROLES],
    sentences=[":", CAPTION_QUESTION],
    shipped=Shipped(
        folder="janus",
        sizes=SHAPES,
        bits=lambda: JanusBits(SHAPES),
        tokenizer=TokenizerRecipe(steps=2000, batch_size=32, learning_rate=4e-3),
        network=RECIPE,
    ),
)
