"""The VILA-U of the shapes world: two codes at each position, read and drawn alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import AddedToken, Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from models.families.vila_u.config import OWN, VilaUConfig, VilaUSettings
from models.families.vila_u.likelihood import drawn_picture
from models.families.vila_u.model import Kept, VilaUModel
from models.families.vila_u.network import VilaU
from models.families.vila_u.prompts import BOS, EOS, UNKNOWN, VilaUTokenizer
from models.families.vila_u.tower import Tower
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
from tasks.pretrain.families import Family, Shipped, Sizes
from tasks.pretrain.tokenizer import TokenizerRecipe

DEPTH = 2
ADDED = ("<im_start>", "<im_end>", "<vi_start>", "<vi_end>")


def base_config(vocab_size: int, sizes: Sizes) -> VilaUConfig:
    """The config of a small network; the language model is that of a small Janus."""
    levels, width = int(sizes.patch).bit_length(), tower_width(sizes.bits)
    shape, entries = (sizes.side, sizes.side, DEPTH), 2 ** (sizes.bits // DEPTH)
    settings = {
        "llm": {
            **llama(sizes),
            "vocab_size": vocab_size,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        "siglip": {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": TOWER_HEADS,
            "image_size": sizes.image_size,
            "patch_size": sizes.patch,
        },
        "vision_tower": {
            "rqvaesiglip": {
                "embed_dim": width,
                "n_embed": entries,
                "code_shape": shape,
                "shared_codebook": False,
                "ddconfig": {
                    "z_channels": 32,
                    "resolution": sizes.image_size,
                    "ch": sizes.channels,
                    "ch_mult": (1,) * levels,
                    "num_res_blocks": 0,
                    "attn_resolutions": (),
                },
            },
            "rqtransformer": {
                "block_size": shape,
                "embed_dim": 64,
                "input_embed_dim_1": width,
                "input_embed_dim_2": sizes.width,
                "vocab_size": entries,
                "head": {"n_layer": 2, "block": {"n_head": 4}},
            },
        },
        OWN: {"system": "", "max_text_len": sizes.max_text_len},
    }
    return VilaUConfig.from_sizes(settings, Path("config.json"))


class TowerBits:
    """The tower as `tasks.pretrain.tokenizer` trains it: its codes are the signs of numbers.

    Each bit owns as many numbers of a vector. The first code has the first half of the bits, which
    tell patches apart by what they differ in most, and leaves the numbers of the others as they
    are; so the nearest entry to what is left has the signs of those.
    """

    def __init__(self, sizes: Sizes) -> None:
        self.num_bits = sizes.bits
        self.module = Tower(base_config(len(ADDED), sizes)).requires_grad_(True)
        # In the scale of embedded patches, not of far more.
        embeddings = self.module.siglip_model.vision_model.embeddings
        nn.init.normal_(embeddings.position_embedding.weight, std=0.02)
        owned = tower_width(sizes.bits) // sizes.bits
        owned_CZ = signs(sizes.bits // DEPTH).repeat_interleave(owned, dim=1)
        for depth in range(DEPTH):
            book: Any = self.module.quantizer.codebooks[depth]
            nn.init.zeros_(book.weight)
            book.weight.data[:-1].unflatten(1, (DEPTH, -1))[:, depth] = owned_CZ
        self.module.quantizer.requires_grad_(False)

    def bits(self, pixels_B3HW: Tensor) -> Tensor:
        """Logits [B,Z,h,w] of the bits."""
        features_BNZ = self.module.features(pixels_B3HW)
        logits_BNZ = features_BNZ.unflatten(-1, (self.num_bits, -1)).sum(-1)
        height, width, _ = self.module.config.tower.rqvaesiglip.code_shape
        logits_BZhw: Tensor = logits_BNZ.transpose(1, 2).unflatten(2, (height, width))
        return logits_BZhw

    def pixels(self, signs_BZhw: Tensor) -> Tensor:
        """Pixels [B,3,H,W] of signs."""
        bits_BNDz = (signs_BZhw > 0).flatten(2).transpose(1, 2).unflatten(-1, (DEPTH, -1))
        codes_BND = (bits_BNDz * 2 ** torch.arange(self.num_bits // DEPTH)).sum(-1)
        decoded: Tensor = self.module.decode(codes_BND)
        return decoded

    def codes(self, pixels_B3HW: Tensor) -> Tensor:
        """Codes [B,N], both of a position as one number."""
        codes_BND = self.module.quantise(self.module.features(pixels_B3HW))
        codes_BN: Tensor = (codes_BND * self._entries()).sum(-1)
        return codes_BN

    def decoded(self, codes_BN: Tensor) -> Tensor:
        """Pixels of codes."""
        codes_BND = codes_BN[..., None] // self._entries() % 2 ** (self.num_bits // DEPTH)
        decoded: Tensor = self.module.decode(codes_BND)
        return decoded

    def _entries(self) -> Tensor:
        return 2 ** (self.num_bits // DEPTH * torch.arange(DEPTH))


def build_tokenizer(words: Tokenizer, sizes: Sizes) -> VilaUTokenizer:
    """Words with the tokens of VILA-U, of which those of pictures stand at the end."""
    words.model.unk_token = UNKNOWN
    words.add_special_tokens([AddedToken(name, normalized=False) for name in ADDED])
    settings = VilaUSettings(system="", max_text_len=sizes.max_text_len)
    return VilaUTokenizer(PreTrainedTokenizerFast(tokenizer_object=words), settings)


class VilaULearner(ChatLearner):
    """A `tasks.pretrain.base.Learner`."""

    def __init__(self, bits: TowerBits, words: Tokenizer, sizes: Sizes) -> None:
        """A network of random weights; the tower learns no longer."""
        tokenizer, tower = build_tokenizer(words, sizes), bits.module.requires_grad_(False)
        self.network = VilaU(base_config(len(tokenizer), sizes))
        super().__init__(self.network, tokenizer)
        self._whole = VilaUModel(self.network, tower, tokenizer, Kept())

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The layers of the language model and of the depth transformer."""
        return self._whole.blocks

    def model(self) -> VilaUModel:
        """The whole model."""
        return self._whole

    def see(self, images_BHW3: Images) -> NDArray[np.generic]:
        """Both sides have the same codes."""
        return self.draw(images_BHW3)

    def draw(self, images_BHW3: Images) -> Ids:
        """Codes [B,N,D]."""
        codes: Ids = self._whole.encode([Image.fromarray(image) for image in images_BHW3])
        return codes

    def generation(self, drawn_N: Ids, prompt: str, rng: Rng) -> Tree:
        """A prompt and a picture; an empty one is the row that guidance reads."""
        return [Segment(self._prompt(prompt)), drawn_picture(drawn_N, self.tokenizer.special.pad)]


FAMILY = Family(
    bits=TowerBits,
    learner=VilaULearner,
    specials=[UNKNOWN, BOS, EOS],
    sentences=["USER: ASSISTANT:", CAPTION_QUESTION],
    shipped=Shipped(
        folder="vila_u",
        sizes=SHAPES,
        bits=lambda: TowerBits(SHAPES),
        tokenizer=TokenizerRecipe(steps=1500, batch_size=32, learning_rate=3e-3),
        network=RECIPE,
    ),
)
