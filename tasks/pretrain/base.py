"""Pre-train a small model from scratch on packed rows, half language and half pictures, at once.

An understanding row is one picture followed by several questions and a caption, a generation row
one prompt followed by a picture. What they show is a corpus: scenes of the built-in world, here,
or the records of a pool (`records`). How a family writes the rows is in its own module.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn

from core.progress import Progress
from data.shapes.language import INVERSE, NUMBERS, PLURALS, caption, make_prompt
from data.shapes.oracle import read
from data.shapes.questions import HOW_MANY, KIND_SHARES, WHOLE, training_questions
from data.shapes.scene import CATEGORIES, COLORS, SHAPES, SIZES, split_of
from models.nn.packing import Segment, Tree
from models.protocol import UnifiedModel
from tasks.pretrain.snapshot import Snapshot
from tasks.pretrain.tokenizer import scene_images

Ids = NDArray[np.int64]
Images = NDArray[np.uint8]
Rng = np.random.Generator
LOG_EVERY = 100
PROMPT_DROPOUT = 0.1
UNKNOWN = "<|unk|>"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mixture:
    """What understanding rows hold.

    Of the pictures `broken_share` show mistakes, `captioned_share` of the others have a caption
    beside their questions.
    """

    kind_shares: tuple[float, ...] = KIND_SHARES
    captioned_share: float = 0.3
    broken_share: float = 0.4


@dataclass(frozen=True)
class Recipe:
    """How the base is trained; the rates rise over `warmup` steps and fall on a cosine to zero.

    A step has `t2i_rows` prompts with their pictures and `mmu_rows` pictures with `questions` each.
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
    num_scenes: int = 24_000
    """Different whole pictures."""
    first_mixture: Mixture = Mixture()
    """Of the first `first_steps`."""
    first_steps: int = 0
    mixture: Mixture = Mixture()

    def mixture_at(self, step: int) -> Mixture:
        """Of a step, counted from 1."""
        return self.first_mixture if step <= self.first_steps else self.mixture


class Learner(Protocol):
    """A network of a family to be trained, and how the family writes rows."""

    @property
    def network(self) -> nn.Module:
        """What is trained."""
        ...

    @property
    def layers(self) -> Sequence[nn.Module]:
        """Modules whose matrices Muon trains."""
        ...

    def see(self, images_BHW3: Images) -> NDArray[np.generic]:
        """Pictures as rows of the understanding side hold them."""
        ...

    def draw(self, images_BHW3: Images) -> Ids:
        """Pictures as the generation side writes them."""
        ...

    def picture(self, seen: NDArray[np.generic]) -> list[Segment]:
        """Beginning of an understanding row; turns follow its last segment."""
        ...

    def turn(self, question: str, answer: str, *, caption: bool, parent: int) -> Segment:
        """A question and its reply, of which only the reply is learnt; or a caption."""
        ...

    def generation(self, drawn_N: Ids, prompt: str, rng: Rng) -> Tree:
        """A prompt and a picture."""
        ...

    def model(self) -> UnifiedModel:
        """The whole model, of which everything but the network is as it was given."""
        ...

    def losses(self, generation: Sequence[Tree], understanding: Sequence[Tree]) -> list[Tensor]:
        """Mean loss per token of both halves."""
        ...


L = TypeVar("L", bound=Learner)


def word_tokenizer(sentences: Sequence[str], specials: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer of the world's whole language and of the words in `sentences`.

    The first of the ids are those of `specials`, which are cut from any text.
    """
    language = [
        *COLORS, *SHAPES, *PLURALS.values(), *SIZES, *NUMBERS, *INVERSE,
        "a and yes no", *sentences, WHOLE, HOW_MANY,
        "is there a? what color is the? what size is the? how many are there? where from",
    ]  # fmt: skip
    split = Regex(r"[A-Za-z]+:?|\d+|[^\sA-Za-z\d]")
    splitter = pre_tokenizers.Split(split, behavior="removed", invert=True)
    words = dict.fromkeys(w for s in language for w, _ in splitter.pre_tokenize_str(s))
    vocabulary = {word: i for i, word in enumerate([*specials, UNKNOWN, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in specials])
    return tokenizer


class Corpus(Protocol):
    """What a model learns from, in the form of its family."""

    def trees(
        self, learner: Learner, recipe: Recipe, step: int, rng: Rng
    ) -> tuple[list[Tree], list[Tree]]:
        """Generation rows of a step, and its understanding rows."""
        ...


class Scenes:
    """Pictures of the training split of the shapes world, whole ones and ones with mistakes."""

    def __init__(self, learner: Learner, recipe: Recipe, rng: Rng) -> None:
        num_scenes = recipe.num_scenes
        self.scenes, images = scene_images(num_scenes, "train", rng, 0.0)
        self.seen, self.drawn_BN = learner.see(images), learner.draw(images)
        _, images = scene_images(num_scenes // 12, "train", rng, 1.0)
        # What is on a picture with mistakes is what the oracle reads there. A mistake may cancel
        # out or make another whole scene, which must not be one of the other splits.
        scenes = read(images)
        kept = [k for k, s in enumerate(scenes) if s.malformed or split_of(s) == "train"]
        self.broken_scenes = [scenes[k] for k in kept]
        self.broken_seen = learner.see(images[kept])

    def trees(
        self, learner: Learner, recipe: Recipe, step: int, rng: Rng
    ) -> tuple[list[Tree], list[Tree]]:
        """Generation rows of a step, and its understanding rows."""
        mixture = recipe.mixture_at(step)
        generation: list[Tree] = []
        for i in rng.integers(len(self.scenes), size=recipe.t2i_rows):
            dropped = rng.random() < PROMPT_DROPOUT
            category = CATEGORIES[i % len(CATEGORIES)]
            prompt = "" if dropped else str(make_prompt(category, self.scenes[i], rng))
            generation.append(learner.generation(self.drawn_BN[i], prompt, rng))
        understanding: list[Tree] = []
        for i in rng.integers(len(self.scenes), size=recipe.mmu_rows):
            if rng.random() < mixture.broken_share:
                seen, scenes, captioned = self.broken_seen, self.broken_scenes, False
            else:
                seen, scenes = self.seen, self.scenes
                captioned = bool(rng.random() < mixture.captioned_share)
            k = int(i) % len(scenes)
            tree = learner.picture(seen[k])
            parent = len(tree) - 1
            asked = training_questions(scenes[k], rng, recipe.questions, mixture.kind_shares)
            for q in asked:
                tree.append(learner.turn(q.question, q.answer, caption=False, parent=parent))
            if captioned:
                said = caption(scenes[k])
                tree.append(learner.turn("", said, caption=True, parent=parent))
            understanding.append(tree)
        return generation, understanding


def pretrain(
    make_learner: Callable[[], L],
    recipe: Recipe,
    *,
    seed: int,
    corpus_of: Callable[[Learner, Recipe, Rng], Corpus] = Scenes,
    state: Path | None = None,
) -> L:
    """Train from scratch, or on from what an interrupted run has left in the file `state`."""
    torch.manual_seed(seed)
    learner = make_learner()
    network = learner.network.train()
    corpus = corpus_of(learner, recipe, np.random.default_rng(seed))
    rng = np.random.default_rng([seed, 0])
    optimizers = _optimizers(learner, recipe)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min(1.0, (step + 1) / recipe.warmup) * _anneal(step / recipe.steps),
        )
        for optimizer in optimizers
    ]
    sums = np.zeros(2)
    snapshot = Snapshot(state, [network, *optimizers, *schedules], rng)
    done = snapshot.load()
    with Progress("pre-training", recipe.steps) as bar:
        bar.update(done)
        for step in range(done + 1, recipe.steps + 1):
            t2i, mmu = learner.losses(*corpus.trees(learner, recipe, step, rng))
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
                snapshot.save(step)
    network.eval()
    return learner


def _optimizers(learner: Learner, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, head, norms and biases."""
    matrices = [p for layer in learner.layers for p in layer.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in learner.network.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(
            matrices, recipe.matrix_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, recipe.learning_rate, (0.9, 0.98), weight_decay=0.02),
    ]


def _anneal(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))
