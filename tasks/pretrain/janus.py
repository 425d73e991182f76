"""The Janus of the shapes world: a small vision tower that learns to read, codes drawn in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
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
from models.families.janus.likelihood import TokenLogps, drawn_picture, read_picture
from models.families.janus.model import JanusModel, Kept
from models.families.janus.network import Janus
from models.families.janus.prompts import CAPTION_QUESTION, NAMES, JanusTokenizer
from models.families.janus.vq import JanusVQ
from models.nn.packing import IGNORE, Segment, Tree, pack
from tasks.pretrain.base import (
    MAX_TEXT_LEN,
    UNKNOWN,
    Ids,
    Images,
    Mixture,
    Recipe,
    Rng,
    word_tokenizer,
)
from tasks.pretrain.tokenizer import PATCH, TokenizerRecipe, to_pixels

ROLES = ("<|User|>", "<|Assistant|>")
WIDTH, BITS = 96, 8
TOKENIZER = TokenizerRecipe(steps=2000, batch_size=32, learning_rate=4e-3)
# The reply to a question about one word depends on finding that word in the picture, which is not
# learned from a mixture of harder questions. Captions show what is in a picture in fewer steps.
LOOKING_UP = Mixture(
    kind_shares=(0.1, 0.04, 0.5, 0.06, 0.15, 0.05, 0.1), captioned_share=1.0, broken_share=0.2
)
READING = Mixture(
    kind_shares=(0.12, 0.05, 0.25, 0.08, 0.12, 0.08, 0.3), captioned_share=0.7, broken_share=0.3
)
RECIPE = Recipe(
    steps=1800,
    warmup=100,
    t2i_rows=8,
    num_scenes=6_000,
    first_mixture=LOOKING_UP,
    first_steps=500,
    mixture=READING,
)


def base_config(vocab_size: int, image_size: int) -> JanusConfig:
    """Sizes of the shipped network; the language model is about as large as the small Show-o."""
    levels = int(PATCH).bit_length()
    sizes = {
        "model_type": HF_TYPE,
        "text_config": {
            "model_type": "llama",
            "hidden_size": WIDTH,
            "intermediate_size": 256,
            "num_hidden_layers": 5,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "vocab_size": vocab_size,
            **{f"{name}_token_id": list(NAMES).index(name) for name in ("bos", "eos", "pad")},
            "max_position_embeddings": 256,
            # Of 12 numbers of a head some have to tell near tokens apart: with a base of 1,000,000
            # questions about directions, which name two shapes, stay at chance.
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
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
        places = 2 ** torch.arange(BITS)
        signs_CZ = ((torch.arange(2**BITS)[:, None] // places) % 2) * 2.0 - 1
        self.module.quantize.embedding.weight.data.copy_(signs_CZ / BITS**0.5)
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


class JanusLearner:
    """A `tasks.pretrain.base.Learner`."""

    def __init__(self, vq: JanusVQ, image_size: int) -> None:
        """A network of random weights, whose vision tower learns too."""
        self.vq = vq
        self.tokenizer = build_tokenizer(base_config(len(NAMES), image_size))
        self.config = base_config(len(self.tokenizer), image_size)
        self.network = Janus(self.config).requires_grad_(True)
        self._module = TokenLogps(self.network)
        self._whole = JanusModel(self.network, vq, self.tokenizer, Kept())
        self._answer = cache(self.tokenizer.answer)
        self._question = cache(self.tokenizer.question)
        self._prompt = cache(self.tokenizer.prompt)

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

    def picture(self, seen: NDArray[np.generic]) -> list[Segment]:
        """Head and features."""
        return read_picture(seen, self.tokenizer)

    def turn(self, question: str, answer: str, *, caption: bool, parent: int) -> Segment:
        """A turn of the user and the reply in one segment."""
        asked = self._question(CAPTION_QUESTION if caption else question)
        said = self._answer(answer)
        labels = np.concatenate((np.full(len(asked), IGNORE), said))
        return Segment(np.concatenate((asked, said[:-1])), parent=parent, labels=labels)

    def generation(self, drawn_N: Ids, prompt: str, rng: Rng) -> Tree:
        """A prompt and a picture; an empty one is the row that guidance reads."""
        ids = self._prompt(prompt)
        if not prompt:
            # As long as any prompt: what is left out of guided rows is the words, not the length.
            ids = np.full(len(ids) + int(rng.integers(3, 12)), self.tokenizer.special.pad)
            ids[0], ids[-1] = self.tokenizer.special.bos, self.tokenizer.special.boi
        return [Segment(ids), drawn_picture(drawn_N, self.config.vocab_size)]

    def losses(self, generation: Sequence[Tree], understanding: Sequence[Tree]) -> list[Tensor]:
        """Run apart, since pictures that are drawn have a head of their own."""
        pad = self.tokenizer.special.pad
        drawn = self._module(pack(generation, pad), codes=True)
        return [-drawn.mean(), -self._module(pack(understanding, pad)).mean()]
