"""The Janus of the shapes world: a small vision tower that learns to read, codes drawn in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.models.janus.modeling_janus import JanusVQVAE

from data.shapes.render import BACKGROUND
from models.families.janus.config import HF_TYPE, OWN, JanusConfig
from models.families.janus.likelihood import drawn_picture
from models.families.janus.model import JanusModel, Kept
from models.families.janus.network import Janus
from models.families.janus.prompts import NAMES, JanusTokenizer
from models.families.janus.vq import JanusVQ
from models.nn.packing import Segment, Tree
from models.tokenizers.chat import CAPTION_QUESTION
from tasks.pretrain.base import (
    MAX_TEXT_LEN,
    UNKNOWN,
    Ids,
    Images,
    Rng,
    word_tokenizer,
)
from tasks.pretrain.chat import BITS, LLAMA, WIDTH, ChatLearner, signs
from tasks.pretrain.tokenizer import PATCH, TokenizerRecipe, to_pixels

ROLES = ("<|User|>", "<|Assistant|>")
TOKENIZER = TokenizerRecipe(steps=2000, batch_size=32, learning_rate=4e-3)


def base_config(vocab_size: int, image_size: int) -> JanusConfig:
    """Sizes of the shipped network; the language model is about as large as the small Show-o."""
    levels = int(PATCH).bit_length()
    sizes = {
        "model_type": HF_TYPE,
        "text_config": {
            "model_type": "llama",
            **LLAMA,
            "vocab_size": vocab_size,
            **{f"{name}_token_id": list(NAMES).index(name) for name in ("bos", "eos", "pad")},
        },
        "vision_config": {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": image_size,
            "patch_size": PATCH,
            "mlp_ratio": 4,
            "projection_dim": WIDTH,
            "num_image_tokens": (image_size // PATCH) ** 2,
        },
        "vq_config": {
            "embed_dim": BITS,
            "num_embeddings": 2**BITS,
            "latent_channels": 32,
            "base_channels": 64,
            "channel_multiplier": [1] * levels,
            "num_res_blocks": 0,
            "projection_dim": WIDTH,
            "image_token_embed_dim": WIDTH,
        },
        OWN: {"max_text_len": MAX_TEXT_LEN, "system": ""},
    }
    config = JanusConfig.from_sizes(sizes, Path("config.json"))
    red, green, blue = (round(value / 255, 3) for value in BACKGROUND)
    prepared = replace(
        config.preprocessing, image_mean=(red, green, blue), image_std=(0.25, 0.25, 0.25)
    )
    return replace(config, preprocessing=prepared)


class JanusBits:
    """The image tokenizer as `tasks.pretrain.tokenizer` trains it: codes are signs of 8 numbers.

    The codebook has all vectors of signs, so the nearest one by direction has the signs of the
    encoder's.
    """

    def __init__(self, image_size: int) -> None:
        self.module = JanusVQVAE(base_config(len(NAMES), image_size).vq)
        self.module.quantize.embedding.weight.data.copy_(signs(BITS) / BITS**0.5)
        self.module.quantize.requires_grad_(False)

    def bits(self, pixels_B3HW: Tensor) -> Tensor:
        """Logits [B,Z,h,w] of the bits."""
        encoded: Tensor = self.module.quant_conv(self.module.encoder(pixels_B3HW))
        return encoded

    def pixels(self, signs_BZhw: Tensor) -> Tensor:
        """Pixels [B,3,H,W] of signs."""
        decoded: Tensor = self.module.decoder(self.module.post_quant_conv(signs_BZhw / BITS**0.5))
        return decoded

    def codes(self, pixels_B3HW: Tensor) -> Tensor:
        """Codes [B,N]."""
        return JanusVQ(self.module).encode(pixels_B3HW)

    def decoded(self, codes_BN: Tensor) -> Tensor:
        """Pixels of codes."""
        side = int(codes_BN.shape[1] ** 0.5)
        return JanusVQ(self.module).decode(codes_BN, side, side)


def build_tokenizer(config: JanusConfig) -> JanusTokenizer:
    """A word-level tokenizer of the world's whole language, with the tokens of Janus."""
    words = word_tokenizer([":", CAPTION_QUESTION], [*NAMES.values(), *ROLES])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=NAMES["bos"],
        eos_token=NAMES["eos"],
        pad_token=NAMES["pad"],
        unk_token=UNKNOWN,
    )
    return JanusTokenizer(fast, config.settings)


class JanusLearner(ChatLearner):
    """A `tasks.pretrain.base.Learner`."""

    def __init__(self, vq: JanusVQ, image_size: int) -> None:
        """A network of random weights, whose vision tower learns too."""
        self.vq = vq
        tokenizer = build_tokenizer(base_config(len(NAMES), image_size))
        self.config = base_config(len(tokenizer), image_size)
        self.network = Janus(self.config).requires_grad_(True)
        super().__init__(self.network, tokenizer)
        self._boi = tokenizer.special.boi
        self._whole = JanusModel(self.network, vq, tokenizer, Kept())

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
