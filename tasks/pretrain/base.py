"""Pre-train the Show-o of the shapes world on packed rows, half language and half pictures.

An understanding row is one picture followed by several questions and a caption, a generation row
one prompt followed by a masked picture, as Show-o is trained, from scratch and at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from core.progress import Progress
from data.shapes.language import INVERSE, NUMBERS, PLURALS, caption, make_prompt
from data.shapes.oracle import read
from data.shapes.questions import HOW_MANY, WHOLE, training_questions
from data.shapes.scene import CATEGORIES, COLORS, SHAPES, SIZES
from models.magvitv2 import MAGVITv2
from models.packing import IGNORE, Segment, Tree, pack
from models.showo.logps import TokenLogps
from models.showo.masks import cosine_mask
from models.showo.network import Showo, ShowoConfig
from models.showo.prompting import (
    CAPTION_QUESTION,
    ShowoTokenizer,
    image_block,
    mmu_answer,
    mmu_instruction,
    mmu_prefix,
    t2i_prompt,
    vqa_question,
)
from tasks.pretrain.tokenizer import scene_images, to_pixels

END = "<|endoftext|>"
MAX_TEXT_LEN = 18


@dataclass(frozen=True)
class BaseSettings:
    """Length and mixture of pre-training."""

    steps: int = 5000
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    t2i_rows: int = 48
    mmu_rows: int = 20
    questions: int = 3
    num_scenes: int = 24_000
    labelled_scenes: int = 3000
    prompt_dropout: float = 0.1
    seed: int = 0


def build_tokenizer() -> ShowoTokenizer:
    """A word-level tokenizer of the world's whole language."""
    sentences = [
        *COLORS, *SHAPES, *PLURALS.values(), *SIZES, *NUMBERS, *INVERSE,
        "a and yes no USER: Question: ASSISTANT:", CAPTION_QUESTION, WHOLE, HOW_MANY,
        "is there a? what color is the? what size is the? how many are there?",
    ]  # fmt: skip
    split = Regex(r"[A-Za-z]+:?|\d+|[^\sA-Za-z\d]")
    splitter = pre_tokenizers.Split(split, behavior="removed", invert=True)
    words = dict.fromkeys(w for s in sentences for w, _ in splitter.pre_tokenize_str(s))
    vocabulary = {word: i for i, word in enumerate([END, "<|unk|>", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = splitter
    return ShowoTokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token="<|unk|>"
        )
    )


def base_config(tokenizer: ShowoTokenizer, vq: MAGVITv2) -> ShowoConfig:
    """Sizes of the shipped network."""
    return ShowoConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        llm_vocab_size=tokenizer.special.pad,
        num_new_special_tokens=10,
        codebook_size=2**vq.config.codebook_dim,
        num_vq_tokens=16,
        max_text_len=MAX_TEXT_LEN,
        bos_token_id=tokenizer.special.bos,
        eos_token_id=tokenizer.special.eos,
        special_ids=dict(tokenizer.special_ids),
        max_position_embeddings=256,
    )


@dataclass(frozen=True)
class Corpus:
    """Tokenised pictures and everything true that may be said about them."""

    ids_BN: NDArray[np.int64]
    categories: Sequence[str]
    scenes: Sequence[object]

    def __len__(self) -> int:
        return len(self.scenes)


class Rows:
    """Draws packed training rows."""

    def __init__(self, tokenizer: ShowoTokenizer, config: ShowoConfig, settings: BaseSettings) -> None:
        self.tokenizer, self.config, self.settings = tokenizer, config, settings
        self.answer = cache(lambda text: mmu_answer(tokenizer, text, 64))
        self.instruction = cache(lambda text: mmu_instruction(tokenizer, text))
        self.prompt = cache(
            lambda text: t2i_prompt(tokenizer.encode(text), tokenizer.special, MAX_TEXT_LEN)
        )

    def branch(self, question: str, answer: str) -> Segment:
        asked, said = self.instruction(question), self.answer(answer)
        labels = np.concatenate((np.full(len(asked), IGNORE), said))
        return Segment(np.concatenate((asked, said)), parent=0, labels=labels)

    def understanding(self, ids_N, scene, whole: bool, rng) -> Tree:  # type: ignore[no-untyped-def]
        prefix = Segment(mmu_prefix(ids_N, self.tokenizer.special), full=True)
        asked = training_questions(scene, rng, self.settings.questions)
        branches = [self.branch(vqa_question(q.question), q.answer) for q in asked]
        if whole:
            branches.append(self.branch(CAPTION_QUESTION, caption(scene)))
        return [prefix, *branches]

    def generation(self, ids_N, category: str, scene, rng) -> Tree:  # type: ignore[no-untyped-def]
        dropped = rng.random() < self.settings.prompt_dropout
        prompt = self.prompt("" if dropped else str(make_prompt(category, scene, rng)))
        time, order = rng.random(1, np.float32), rng.random((1, len(ids_N)), np.float32)
        mask_N = cosine_mask(time, order)[0][0]
        special = self.tokenizer.special
        block = image_block(np.where(mask_N, self.config.mask_token_id, ids_N), special)
        labels = np.concatenate(([IGNORE], np.where(mask_N, ids_N, IGNORE), [IGNORE]))
        start = MAX_TEXT_LEN + 1 - len(prompt)
        return [
            Segment(prompt, position=start),
            Segment(block, parent=0, full=True, labels=labels),
        ]


def pretrain(vq: MAGVITv2, settings: BaseSettings) -> Showo:
    """Train with a rate that is annealed to zero."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    tokenizer = build_tokenizer()
    config = base_config(tokenizer, vq)
    model = Showo(config).train()
    module = TokenLogps(model)
    rows = Rows(tokenizer, config, settings)
    scenes, images = scene_images(settings.num_scenes, "train", rng, 0.0)
    clean = encode(vq, images) + config.image_offset
    _, images = scene_images(settings.labelled_scenes // 3, "train", rng, 1.0)
    # What is on a picture with mistakes is what the oracle reads there.
    broken_scenes, broken = read(images), encode(vq, images) + config.image_offset
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, (0.9, 0.98), weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 200) * _anneal(step / settings.steps)
    )
    sums = np.zeros(2)
    with Progress("pre-training", settings.steps) as bar:
        for step in range(settings.steps):
            trees: list[Tree] = []
            for i in rng.integers(settings.num_scenes, size=settings.t2i_rows):
                category = CATEGORIES[i % len(CATEGORIES)]
                trees.append(rows.generation(clean[i], category, scenes[i], rng))
            for i in rng.integers(settings.labelled_scenes, size=settings.mmu_rows):
                if rng.random() < 0.2:
                    i = i % len(broken)
                    trees.append(rows.understanding(broken[i], broken_scenes[i], False, rng))
                else:
                    trees.append(rows.understanding(clean[i], scenes[i], True, rng))
            t2i, mmu = _loss(module, trees, settings.t2i_rows, tokenizer.special.pad)
            optimizer.zero_grad(set_to_none=True)
            (t2i + mmu).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.update(1)
            sums += (t2i.item(), mmu.item())
            if (step + 1) % 100 == 0:
                print(step + 1, (sums / 100).round(4), flush=True)
                sums[:] = 0
    return model.eval()


def _loss(module: TokenLogps, trees: Sequence[Tree], num_t2i: int, pad: int) -> list[Tensor]:
    """Mean loss a token of both halves, run apart since their rows differ in length."""
    halves = (trees[:num_t2i], trees[num_t2i:])
    return [-module(pack(half, pad)).mean() for half in halves]


def _anneal(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def encode(vq: MAGVITv2, images_BHW3: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Codes [B, N] of uint8 images."""
    chunks = [vq.get_code(to_pixels(images_BHW3[i : i + 256])) for i in range(0, len(images_BHW3), 256)]
    return torch.cat(chunks).numpy()
