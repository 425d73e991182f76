"""What a stage will need of its device's memory: arithmetic on sizes, without torch.

Counted are weights, gradients, moments, what the backward pass keeps, caches, logits and pixels,
for texts as long as they may get. Not counted: libraries, and what an allocator cannot
use. tests/test_memory_plan.py holds the figures against what was measured.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.config import Config

FLOAT, HALF, LONG = 4, 2, 8
OTHER = "pixels or logits"
Parts = Mapping[str, float]
"""Bytes by what they hold."""

# At once, as in models/head.py and models/showo/model.py.
HEAD_LOGITS, HEAD_COLUMNS = 2**24, (2**6, 2**12)
PIXELS = 2**18
RUN_TOKENS = 2**12
"""Of questions that run at once in a thread, where that is a CPU."""
HALVED_WEIGHTS = 2**27
"""Of the largest model that a CPU trains on two halves of its rows at once, each of which has a
gradient of its own; of this one another half gigabyte."""
INSTRUCTION_TOKENS = 16  # of a caption's instruction, or a question
# Assumed of a pool's questions, which no config says.
QUESTIONS, CHOICES, CHOICE_TOKENS = 8, 4, 4


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that memory depends on."""

    width: int
    inner: int
    layers: int
    heads: int
    vocabulary: int
    codebook: int
    image_tokens: int
    text_tokens: int
    weights: int
    """Parameters of the network."""
    vq_weights: int
    vq_channels: float
    """Channels times pixels, as a share of the image's pixels, where the tokenizer is widest."""
    side: int
    """Pixels of an image, along a side."""

    @classmethod
    def from_folder(cls, folder: Path) -> Shape:
        """Read a model's folder; of its weights the headers."""
        network = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        vq = json.loads((folder / "vq/config.json").read_text(encoding="utf-8"))
        text = network["llm_vocab_size"] + network["num_new_special_tokens"]
        downsample = 2 ** (len(vq["encoder"]["ch_mult"]) - 1)
        return cls(
            width=network["hidden_size"],
            inner=network["intermediate_size"],
            layers=network["num_hidden_layers"],
            heads=network["num_attention_heads"],
            vocabulary=text + network["codebook_size"] + 1,
            codebook=network["codebook_size"],
            image_tokens=network["num_vq_tokens"],
            text_tokens=network["max_text_len"],
            weights=_count_weights(folder / "model.safetensors"),
            vq_weights=_count_weights(folder / "vq/model.safetensors"),
            vq_channels=max(max(_levels(vq["encoder"])), _widest_decoding(vq["decoder"])),
            side=math.isqrt(network["num_vq_tokens"]) * downsample,
        )

    @property
    def block(self) -> int:
        """Weights of a block's matrices."""
        return 4 * self.width**2 + 2 * self.width * self.inner

    @property
    def table(self) -> int:
        """Weights of the embedding, and of the head."""
        return self.vocabulary * self.width

    def adapters(self, rank: int) -> int:
        """Weights of LoRA."""
        return self.layers * rank * (4 * 2 * self.width + 2 * (self.width + self.inner))


def _levels(half: Mapping[str, Any]) -> list[float]:
    return [half["ch"] * m / 4**i for i, m in enumerate(half["ch_mult"])]


def _widest_decoding(half: Mapping[str, Any]) -> float:
    """A level is brought to the pixels of the one above it with its own channels."""
    first, *others = _levels(half)
    return max(first, *(4 * level for level in others))


def _count_weights(path: Path) -> int:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return sum(math.prod(v["shape"]) for name, v in header.items() if name != "__metadata__")


@dataclass(frozen=True)
class Need:
    """Bytes that a stage needs whatever it does, and for each of so many records at once."""

    fixed: Parts
    each: Parts = field(default_factory=dict)
    records: int = 1
    most: int | None = None
    """Records that memory is taken for at the same time, whatever more there are."""

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def parts(self) -> Parts:
        """Both together, by what they hold."""
        return {**self.fixed, **{name: self.taken * size for name, size in self.each.items()}}

    @property
    def taken(self) -> int:
        """Records that memory is taken for."""
        return self.records if self.most is None else min(self.records, self.most)

    def fitting(self, available: float) -> int:
        """How many records fit, at most those wanted; 0 if not even one does."""
        left = available - sum(self.fixed.values())
        fitting = max(0, int(left / max(1.0, sum(self.each.values()))))
        return self.records if fitting >= self.taken else fitting


# Training.


@dataclass(frozen=True)
class Step:
    """A step of Pair-DPO as one process computes it."""

    pairs: int
    masks: int
    caption_tokens: int
    prompt_tokens: int
    precision: str = "float32"
    rank: int | None = None
    recompute: bool = False
    shards: int = 1
    alone: bool = False
    modalities: int = 2
    optimizers: int = 2
    joint: bool = False
    accumulates: bool = True
    batch: int = 0
    """Pairs whose gradients add up before weights move, where `pairs` of them at once are fewer."""
    gpu: bool = False
    lanes: int = 1
    """Parts of the pairs that are computed in threads of their own."""

    @property
    def in_parts(self) -> bool:
        """Whether pairs of a batch are computed some at a time."""
        return self.pairs < self.batch


def training(shape: Shape, step: Step) -> Need:
    """Weights, gradients and moments of all optimizers, and what one backward pass takes."""
    trained = shape.weights if step.rank is None else shape.adapters(step.rank)
    tokens_of = (_caption_tokens(shape, step), _image_tokens(shape, step))[-step.modalities :]
    with_gradient = trained
    if step.alone and step.rank is None:
        # Of the embedding, rows of tokens that are there; in the end all rows have moments.
        rows = min(shape.vocabulary, max(step.pairs, step.batch) * sum(tokens_of))
        with_gradient -= shape.table - rows * shape.width
    gradients = FLOAT * with_gradient * step.optimizers / step.shards
    gradients *= min(step.lanes, step.pairs)
    *captions, images = [_kept(shape, step, tokens) for tokens in tokens_of]
    if step.joint:
        activations = sum(captions) + images
    else:
        # Images come first, before there is any gradient of their pairs.
        before = 0.0 if step.in_parts else gradients
        activations = max(*captions, images - before, 0.0)
    # Logits are gone when the blocks' turn comes, and activations when AdamW's does, which has
    # intermediate results of all weights on a GPU, elsewhere of one.
    adamw = FLOAT * trained / step.shards if step.gpu else 2 * FLOAT * min(trained, shape.table)
    backward = max(_backward(shape, step, max(tokens_of)), adamw - activations)
    if (step.accumulates or step.in_parts) and step.rank is None:
        # The gradient of the largest matrix, before it is added to what is there: the head adds its
        # own part by part, unless it is sharded.
        backward += FLOAT * (shape.table if step.shards > 1 else shape.width * shape.inner)
    return Need(
        {
            "weights": _weights(shape, step, trained),
            "image tokenizer": FLOAT * shape.vq_weights,
            "gradients": gradients,
            "moments": 2 * FLOAT * trained * step.optimizers / step.shards,
            "activations": activations,
            "backward pass": backward,
        }
    )


def _weights(shape: Shape, step: Step, trained: int) -> float:
    size = FLOAT * shape.weights / step.shards
    if step.rank is not None:
        size += FLOAT * trained / step.shards
    if step.precision == "bfloat16" and (step.rank is None or not step.recompute):
        # Copies that matrices are multiplied by, kept for the backward pass.
        size += HALF * (shape.weights - shape.table)
    if step.shards > 1:
        # Two blocks that are whole for the moment, embedding and head, and their gradients.
        size += 2 * FLOAT * (2 * shape.block + 2 * shape.table)
    return size


def _caption_tokens(shape: Shape, step: Step) -> int:
    return shape.image_tokens + 3 + INSTRUCTION_TOKENS + 2 * step.caption_tokens


def _image_tokens(shape: Shape, step: Step) -> int:
    return step.prompt_tokens + 2 * step.masks * (shape.image_tokens + 2)


def _kept(shape: Shape, step: Step, tokens: int) -> float:
    """What the backward pass finds of rows of so many tokens."""
    if step.recompute:
        return shape.layers * step.pairs * tokens * FLOAT * shape.width
    return shape.layers * _block(shape, step, tokens)


def _block(shape: Shape, step: Step, tokens: int) -> float:
    """What a block keeps."""
    width, inner = shape.width, shape.inner
    if step.precision == "bfloat16":
        # In float32: a block's input, queries and keys before their norms. In bfloat16: the normed
        # input for each of four matrices, queries, keys, values, attention twice, MLP twice.
        token = 3 * FLOAT * width + HALF * (9 * width + 2 * inner)
        mask = HALF * tokens
    else:
        # Input, normed input, queries and keys before and after their norms, values, attention
        # twice, and both sides of the MLP's activation.
        token = FLOAT * (9 * width + 2 * inner)
        mask = FLOAT * tokens
    return float(step.pairs * tokens * (token + mask))


def _backward(shape: Shape, step: Step, tokens: int) -> float:
    """What the backward pass needs beside what it finds: of the head, or of a block."""
    labels = 2 * max(step.caption_tokens, step.masks * shape.image_tokens)
    head = _logits(shape, step.pairs * labels)
    gradients = step.pairs * tokens * FLOAT * (4 * shape.width + 2 * shape.inner)
    again = _block(shape, step, tokens) if step.recompute else 0
    return max(head, gradients + again)


# Sampling and scoring, of which each record needs the same again.


def _network(shape: Shape, precision: str) -> dict[str, float]:
    size = HALF if precision == "bfloat16" else FLOAT
    return {"weights": size * shape.weights, "image tokenizer": FLOAT * shape.vq_weights}


def _cache(shape: Shape, precision: str) -> int:
    """Keys and values of one position."""
    return 2 * shape.layers * shape.width * (HALF if precision == "bfloat16" else FLOAT)


def _passing(shape: Shape, precision: str, tokens: int) -> float:
    """Of a row that runs through a block without leaving anything behind."""
    size = HALF if precision == "bfloat16" else FLOAT
    return size * tokens * (8 * shape.width + 2 * shape.inner)


def _pixels(shape: Shape, num_images: int) -> float:
    """Of images where the tokenizer is widest: a block's input, normed, activated, convolved."""
    at_once = min(num_images, max(1, PIXELS // shape.side**2))
    return 4 * FLOAT * shape.side**2 * shape.vq_channels * at_once


def _need(shape: Shape, precision: str, name: str, each: float, other: float, records: int) -> Need:
    """Of records, of which each needs so much, and of something `other` before or after that."""
    excess = max(0.0, other - records * each)
    return Need(_network(shape, precision) | {OTHER: excess}, {name: each}, records)


def captions(shape: Shape, precision: str, samples: int, new_tokens: int, records: int) -> Need:
    """Images encoded, then all captions of each decoded behind one prefix."""
    prefix = shape.image_tokens + 3 + INSTRUCTION_TOKENS
    cache = _cache(shape, precision)
    probabilities = 6 * FLOAT * samples * shape.vocabulary
    prefill = _passing(shape, precision, prefix)
    decoding = cache * (prefix + samples * new_tokens) + probabilities
    each = cache * prefix + max(prefill, decoding)
    pixels = _pixels(shape, records)
    return _need(shape, precision, "caches and logits", each, pixels, records)


def images(
    shape: Shape, precision: str, samples: int, steps: int, guided: bool, records: int
) -> Need:
    """Steps over a block behind a cached prompt, then codes to pixels."""
    rows = samples * (2 if guided else 1)
    block = shape.image_tokens + 2
    prompt = shape.text_tokens + 1
    cache = _cache(shape, precision) * rows * (prompt + block)
    size = HALF if precision == "bfloat16" else FLOAT
    logits = shape.image_tokens * shape.codebook * (rows * (size + FLOAT) + samples * 4 * FLOAT)
    noise = FLOAT * samples * 2 * steps * shape.image_tokens
    each = cache + noise + max(logits, rows * _passing(shape, precision, block))
    pixels = _pixels(shape, records * samples)
    return _need(shape, precision, "caches and logits", each, pixels, records)


def answers(shape: Shape, precision: str, records: int, on_cpu: bool) -> Need:
    """The choices of all questions of an image by their likelihood."""
    labels = QUESTIONS * CHOICES * CHOICE_TOKENS
    tokens = shape.image_tokens + 3 + QUESTIONS * INSTRUCTION_TOKENS + labels
    each = _passing(shape, precision, tokens) + 2 * FLOAT * tokens**2
    # Of two halves at once, as below.
    most = -(-2 * RUN_TOKENS // tokens) if on_cpu else records
    at_once = min(records, most)
    logits = _logits_of_halves(shape, at_once * labels)
    need = _need(shape, precision, "activations", each, logits, at_once)
    return replace(need, records=records, most=most)


def reference(shape: Shape, masks: int, records: int) -> Need:
    """Both branches of pairs, by weights in float32, and their images encoded."""
    step = Step(1, masks, shape.text_tokens, shape.text_tokens + 1)
    tokens = max(_caption_tokens(shape, step), _image_tokens(shape, step))
    each = _passing(shape, "float32", tokens) + 2 * FLOAT * tokens**2
    labels = records * 2 * masks * shape.image_tokens
    other = max(_pixels(shape, records), _logits_of_halves(shape, labels))
    return _need(shape, "float32", "activations", each, other, records)


def _logits_of_halves(shape: Shape, labels: int) -> float:
    """Of two halves at once, as without gradients on a CPU (models/lanes.py)."""
    return 2 * _logits(shape, labels // 2)


def _logits(shape: Shape, labels: int) -> float:
    """Of labels over a part of the vocabulary, and what is made of them."""
    least, most = HEAD_COLUMNS
    return 2 * FLOAT * min(labels * min(most, shape.vocabulary), max(HEAD_LOGITS, labels * least))


# What a config says.


def for_captions(config: Config, shape: Shape) -> Need:
    """Of stage sample-captions."""
    sampling = config.sampling.captions
    samples = sum(group.num_samples for group in sampling.settings)
    size, precision = config.runtime.batch_records, config.model.precision
    return captions(shape, precision, samples, sampling.max_new_tokens, size)


def for_images(config: Config, shape: Shape) -> Need:
    """Of stage sample-images."""
    chosen = config.sampling.images
    size, precision = config.runtime.batch_records, config.model.precision
    return images(shape, precision, chosen.num_samples, chosen.steps, chosen.guidance > 0, size)


def for_answers(config: Config, shape: Shape) -> Need:
    """Of stage score-images."""
    runtime = config.runtime
    on_cpu = runtime.device == "cpu"
    return answers(shape, config.model.precision, runtime.batch_records, on_cpu)


def for_reference(config: Config, shape: Shape) -> Need:
    """Of stage reference."""
    return reference(shape, config.training.masks_per_pair, config.runtime.batch_records)


def for_evaluation(config: Config, shape: Shape) -> Need:
    """Of stage evaluate: what it does one after the other, and its judge."""
    chosen, size = config.sampling.images, config.runtime.batch_records
    precision, samples = config.model.precision, config.evaluation.images_per_prompt
    told = config.sampling.captions.max_new_tokens
    needs = (
        images(shape, precision, samples, chosen.steps, chosen.guidance > 0, size),
        captions(shape, precision, 1, told, size),
        answers(shape, precision, samples * size, config.runtime.device == "cpu"),
    )
    fixed = dict(max(needs, key=lambda need: need.fixed[OTHER]).fixed)
    if config.evaluation.judge in ("base", "checkpoint"):
        fixed["judge"] = sum(_network(shape, precision).values())
    each = max(need.taken * sum(need.each.values()) for need in needs) / size
    return Need(fixed, {"records": each}, size)


def for_training(config: Config, shape: Shape, processes: int) -> Step:
    """The step of stage train in each of so many processes."""
    training, runtime = config.training, config.runtime
    branches = training.caption, training.image
    pairs_here = -(-training.batch_size // processes)
    active = sum(branch.weight > 0 or branch.nll_weight > 0 for branch in branches)
    return Step(
        pairs=min(runtime.batch_pairs, pairs_here),
        masks=training.masks_per_pair,
        caption_tokens=shape.text_tokens,
        prompt_tokens=shape.text_tokens + 1,
        precision=config.model.precision,
        rank=training.lora.rank if training.lora else None,
        recompute=runtime.recompute,
        shards=processes if runtime.shard_weights else 1,
        alone=processes == 1,
        modalities=active,
        optimizers=1,
        joint=training.objective == "joint",
        accumulates=active > 1,
        batch=pairs_here,
        gpu=config.runtime.device != "cpu",
    )
