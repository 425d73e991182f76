"""Pre-train the Show-o of the shapes world on packed rows, half language and half pictures.

An understanding row is one picture followed by several questions and a caption, a generation row
one prompt followed by a masked picture, as Show-o is trained, from scratch and at once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from core.progress import Progress
from data.shapes.language import INVERSE, NUMBERS, PLURALS, caption, make_prompt
from data.shapes.oracle import read
from data.shapes.questions import HOW_MANY, WHOLE, training_questions
from data.shapes.scene import CATEGORIES, COLORS, SHAPES, SIZES, Scene, split_of
from models.families.showo.config import ShowoConfig
from models.families.showo.likelihood import TokenLogps
from models.families.showo.masks import cosine_mask
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
from models.tokenizers.magvitv2 import MAGVITv2
from tasks.pretrain.tokenizer import scene_images, to_pixels

Ids = NDArray[np.int64]
Rng = np.random.Generator
END = "<|endoftext|>"
LOG_EVERY = 100
logger = logging.getLogger(__name__)
MAX_TEXT_LEN = 18


@dataclass(frozen=True)
class Recipe:
    """How the base is trained; the rates rise over `warmup` steps and fall on a cosine to zero.

    A step has `t2i_rows` prompts with their pictures and `mmu_rows` pictures with `questions` each,
    of which `broken_share` show mistakes and `captioned_share` of the others have a caption too.
    """

    steps: int = 1800
    warmup: int = 180
    # Of the weight matrices between embeddings and head, which Muon trains, and of all else.
    matrix_rate: float = 1e-2
    learning_rate: float = 3e-3
    t2i_rows: int = 20
    mmu_rows: int = 32
    # Reading learns to look words up in a picture late; weighed equally it does not within the
    # steps that drawing needs.
    mmu_weight: float = 4.0
    questions: int = 8
    captioned_share: float = 0.3
    broken_share: float = 0.4


NUM_SCENES = 24_000
PROMPT_DROPOUT = 0.1


def build_tokenizer() -> ShowoTokenizer:
    """A word-level tokenizer of the world's whole language."""
    sentences = [
        *COLORS, *SHAPES, *PLURALS.values(), *SIZES, *NUMBERS, *INVERSE,
        "a and yes no USER: Question: ASSISTANT:", CAPTION_QUESTION, WHOLE, HOW_MANY,
        "is there a? what color is the? what size is the? how many are there? where from",
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
        hidden_size=96,
        intermediate_size=384,
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


class Rows:
    """Draws packed training rows."""

    def __init__(self, tokenizer: ShowoTokenizer, config: ShowoConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.answer = cache(lambda text: mmu_answer(tokenizer, text, 64))
        self.instruction = cache(lambda text: mmu_instruction(tokenizer, text))
        self.prompt = cache(
            lambda text: t2i_prompt(tokenizer.encode(text), tokenizer.special, MAX_TEXT_LEN)
        )

    def branch(self, question: str, answer: str) -> Segment:
        """A turn of the user and the reply, of which only the reply is learnt."""
        asked, said = self.instruction(question), self.answer(answer)
        labels = np.concatenate((np.full(len(asked), IGNORE), said))
        return Segment(np.concatenate((asked, said[:-1])), parent=0, labels=labels)

    def understanding(
        self, ids_N: Ids, scene: Scene, questions: int, captioned: bool, rng: Rng
    ) -> Tree:
        """A picture, questions about it, and its caption if wanted."""
        prefix = Segment(mmu_prefix(ids_N, self.tokenizer.special), full=True)
        asked = training_questions(scene, rng, questions)
        branches = [self.branch(vqa_question(q.question), q.answer) for q in asked]
        if captioned:
            branches.append(self.branch(CAPTION_QUESTION, caption(scene)))
        return [prefix, *branches]

    def generation(self, ids_N: Ids, category: str, scene: Scene, rng: Rng) -> Tree:
        """A prompt and a masked picture."""
        dropped = rng.random() < PROMPT_DROPOUT
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


class Corpus:
    """Tokenised pictures of the training split, whole ones and ones with mistakes."""

    def __init__(self, vq: MAGVITv2, num_scenes: int, offset: int, rng: Rng) -> None:
        self.scenes, images = scene_images(num_scenes, "train", rng, 0.0)
        self.ids_BN = encode(vq, images) + offset
        _, images = scene_images(num_scenes // 12, "train", rng, 1.0)
        # What is on a picture with mistakes is what the oracle reads there. A mistake may cancel
        # out or make another whole scene, which must not be one of the other splits.
        scenes = read(images)
        kept = [k for k, s in enumerate(scenes) if s.malformed or split_of(s) == "train"]
        self.broken_scenes = [scenes[k] for k in kept]
        self.broken_ids_BN = encode(vq, images[kept]) + offset

    def trees(self, rows: Rows, recipe: Recipe, rng: Rng) -> list[Tree]:
        """Generation rows of a step, then its understanding rows."""
        trees: list[Tree] = []
        for i in rng.integers(len(self.scenes), size=recipe.t2i_rows):
            category = CATEGORIES[i % len(CATEGORIES)]
            trees.append(rows.generation(self.ids_BN[i], category, self.scenes[i], rng))
        for i in rng.integers(len(self.scenes), size=recipe.mmu_rows):
            if rng.random() < recipe.broken_share:
                ids_BN, scenes, captioned = self.broken_ids_BN, self.broken_scenes, False
            else:
                ids_BN, scenes = self.ids_BN, self.scenes
                captioned = bool(rng.random() < recipe.captioned_share)
            k = int(i) % len(scenes)
            asked = recipe.questions
            trees.append(rows.understanding(ids_BN[k], scenes[k], asked, captioned, rng))
        return trees


def pretrain(vq: MAGVITv2, recipe: Recipe, *, num_scenes: int = NUM_SCENES, seed: int) -> Showo:
    """Train from scratch."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    config = base_config(tokenizer, vq)
    network = Showo(config).train()
    corpus = Corpus(vq, num_scenes, config.image_offset, np.random.default_rng(seed))
    rows, rng = Rows(tokenizer, config), np.random.default_rng([seed, 0])
    optimizers = _optimizers(network, recipe)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min(1.0, (step + 1) / recipe.warmup) * _anneal(step / recipe.steps),
        )
        for optimizer in optimizers
    ]
    module, pad = TokenLogps(network), tokenizer.special.pad
    sums = np.zeros(2)
    with Progress("pre-training", recipe.steps) as bar:
        for step in range(1, recipe.steps + 1):
            t2i, mmu = _loss(module, corpus.trees(rows, recipe, rng), recipe.t2i_rows, pad)
            network.zero_grad(set_to_none=True)
            (t2i + recipe.mmu_weight * mmu).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            bar.update(1)
            sums += (t2i.item(), mmu.item())
            if step % LOG_EVERY == 0:
                t2i_mean, mmu_mean = sums / LOG_EVERY
                logger.info("step %d: t2i %.3f, mmu %.3f nats a token", step, t2i_mean, mmu_mean)
                sums[:] = 0
    return network.eval()


def _optimizers(network: Showo, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, head, norms and biases."""
    layers = network.showo.model.layers
    matrices = [p for p in layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in network.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(
            matrices, recipe.matrix_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, recipe.learning_rate, (0.9, 0.98), weight_decay=0.02),
    ]


def _loss(module: TokenLogps, trees: Sequence[Tree], num_t2i: int, pad: int) -> list[Tensor]:
    """Mean loss a token of both halves, run apart since their rows differ in length."""
    halves = (trees[:num_t2i], trees[num_t2i:])
    return [-module(pack(half, pad)).mean() for half in halves]


def _anneal(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def encode(vq: MAGVITv2, images_BHW3: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Codes [B, N] of uint8 images."""
    chunks = [
        vq.get_code(to_pixels(images_BHW3[i : i + 256])) for i in range(0, len(images_BHW3), 256)
    ]
    return torch.cat(chunks).numpy()
