"""The Show-o of the shapes world: rows of masked pictures, and of pictures with questions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from data.shapes.render import CANVAS
from models.families.showo.config import ShowoConfig
from models.families.showo.likelihood import TokenLogps
from models.families.showo.masks import cosine_mask
from models.families.showo.model import ShowoModel
from models.families.showo.network import Showo
from models.families.showo.prompts import (
    CAPTION_QUESTION,
    ShowoTokenizer,
    image_block,
    mmu_answer,
    mmu_instruction,
    mmu_prefix,
    t2i_prompt,
    vqa_question,
)
from models.nn.packing import IGNORE, Segment, Tree, pack
from models.tokenizers.magvitv2 import MAGVITv2Config, StackConfig
from tasks.pretrain.base import Ids, Images, Recipe, Rng
from tasks.pretrain.families import MAX_TEXT_LEN, Family, Shipped, Sizes, fast_tokenizer
from tasks.pretrain.tokenizer import CONFIG, PATCH, MagvitBits, TokenizerRecipe, to_pixels

END = "<|endoftext|>"
SHAPES = Sizes(
    image_size=CANVAS,
    patch=PATCH,
    bits=CONFIG.codebook_dim,
    channels=16,
    width=96,
    layers=5,
    heads=4,
    max_text_len=MAX_TEXT_LEN,
    mean=(0.5, 0.5, 0.5),
)


def tokenizer_config(sizes: Sizes) -> MAGVITv2Config:
    """Channels double at each halving of the sides; most blocks are where the picture is small."""
    levels = int(sizes.patch).bit_length()
    multipliers = tuple(2**level for level in range(levels))
    once = (1,) * (levels - 1)
    return MAGVITv2Config(
        StackConfig(sizes.channels, multipliers, (0, *once)),
        StackConfig(sizes.channels, multipliers, (*once, 2)),
        codebook_dim=sizes.bits,
        groupnorm_groups=1,
    )


def base_config(tokenizer: ShowoTokenizer, sizes: Sizes) -> ShowoConfig:
    """The config of a small network."""
    return ShowoConfig(
        hidden_size=sizes.width,
        intermediate_size=4 * sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        llm_vocab_size=tokenizer.special.pad,
        num_new_special_tokens=10,
        codebook_size=2**sizes.bits,
        num_vq_tokens=sizes.side**2,
        max_text_len=sizes.max_text_len,
        bos_token_id=tokenizer.special.bos,
        eos_token_id=tokenizer.special.eos,
        special_ids=dict(tokenizer.special_ids),
        max_position_embeddings=sizes.positions,
    )


class ShowoLearner:
    """A `tasks.pretrain.base.Learner`."""

    def __init__(self, bits: MagvitBits, words: Tokenizer, sizes: Sizes) -> None:
        """A network of random weights."""
        self.vq = bits.module
        self.tokenizer = ShowoTokenizer(fast_tokenizer(words, bos_token=END, eos_token=END))
        self.config = base_config(self.tokenizer, sizes)
        most = sizes.max_text_len
        self.network = Showo(self.config)
        self._module = TokenLogps(self.network)
        self._answer = cache(lambda text: mmu_answer(self.tokenizer, text, 64))
        self._instruction = cache(lambda text: mmu_instruction(self.tokenizer, text))
        self._prompt = cache(
            lambda text: t2i_prompt(self.tokenizer.encode(text), self.tokenizer.special, most)
        )

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The layers of the transformer."""
        return list(self.network.showo.model.layers)

    def model(self) -> ShowoModel:
        """The whole model."""
        return ShowoModel(self.network, self.vq, self.tokenizer)

    def see(self, images_BHW3: Images) -> Ids:
        """Both sides have the same codes."""
        return self.draw(images_BHW3)

    @torch.no_grad()
    def draw(self, images_BHW3: Images) -> Ids:
        """Ids [B,N] of codes in the vocabulary."""
        parts = np.array_split(images_BHW3, -(-len(images_BHW3) // 256))
        codes = torch.cat([self.vq.get_code(to_pixels(part)) for part in parts])
        return codes.numpy() + self.config.image_offset

    def picture(self, seen: NDArray[np.generic]) -> list[Segment]:
        """All of a picture sees all of it."""
        ids_N = seen.astype(np.int64)
        return [Segment(mmu_prefix(ids_N, self.tokenizer.special), full=True)]

    def turn(self, question: str, answer: str, *, caption: bool, parent: int) -> Segment:
        """A turn of the user and the reply in one segment."""
        wording = CAPTION_QUESTION if caption else vqa_question(question)
        asked, said = self._instruction(wording), self._answer(answer)
        labels = np.concatenate((np.full(len(asked), IGNORE), said))
        return Segment(np.concatenate((asked, said[:-1])), parent=parent, labels=labels)

    def generation(self, drawn_N: Ids, prompt: str, rng: Rng) -> Tree:
        """A prompt and a masked picture."""
        ids = self._prompt(prompt)
        time, order = rng.random(1, np.float32), rng.random((1, len(drawn_N)), np.float32)
        mask_N = cosine_mask(time, order)[0][0]
        special = self.tokenizer.special
        block = image_block(np.where(mask_N, self.config.mask_token_id, drawn_N), special)
        labels = np.concatenate(([IGNORE], np.where(mask_N, drawn_N, IGNORE), [IGNORE]))
        start = self.config.max_text_len + 1 - len(ids)
        return [
            Segment(ids, position=start),
            Segment(block, parent=0, full=True, labels=labels),
        ]

    def losses(self, generation: Sequence[Tree], understanding: Sequence[Tree]) -> list[Tensor]:
        """Run apart, since rows of the two halves differ in length."""
        pad = self.tokenizer.special.pad
        return [-self._module(pack(half, pad)).mean() for half in (generation, understanding)]


FAMILY = Family(
    bits=lambda sizes: MagvitBits(tokenizer_config(sizes)),
    learner=ShowoLearner,
    specials=[END],
    sentences=["USER: Question: ASSISTANT:", CAPTION_QUESTION],
    shipped=Shipped(
        folder="base",
        sizes=SHAPES,
        bits=MagvitBits,
        tokenizer=TokenizerRecipe(steps=2500, batch_size=64, learning_rate=3e-3),
        network=Recipe(),
    ),
)
