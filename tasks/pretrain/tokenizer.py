"""Train an image tokenizer whose codes are the signs of a few numbers.

Two things made lookup-free quantization work at this size. Half of the training pictures are
collages of patches in random places: the code of a patch must then follow from the patch alone,
where scenes let the encoder spread facts over neighbours, in codes that change with the context and
are hard to model. And the bits are warm-started: a binary tree over the distinct patches of the
corpus, split at the median of their first principal component, names for each patch the signs that
the encoder shall give it.

Shapes: B images, H W pixels, P patches, Z bits, N codes of an image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from core.progress import Progress
from data.shapes.oracle import read
from data.shapes.render import BACKGROUND, CELL, cell_pixels, render, render_broken
from data.shapes.scene import (
    CATEGORIES,
    COLORS,
    SHAPES,
    SIZES,
    Object,
    Scene,
    Split,
    sample_scene,
)
from models.tokenizers.magvitv2 import MAGVITv2, MAGVITv2Config, StackConfig
from tasks.pretrain.snapshot import Snapshot

CONFIG = MAGVITv2Config(
    StackConfig(16, (1, 1, 2, 4), (0, 1, 1, 1)),
    StackConfig(16, (1, 1, 2, 4), (1, 1, 1, 1)),
    codebook_dim=8,
    groupnorm_groups=1,
)
PATCH = CONFIG.downsample
BITS_WEIGHT = 0.5
SAVE_EVERY = 200


class BitTokenizer(Protocol):
    """A tokenizer of any architecture whose codes are bits."""

    @property
    def module(self) -> nn.Module:
        """What is trained."""
        ...

    def bits(self, pixels_B3HW: Tensor) -> Tensor:
        """Logits [B,Z,h,w] of the bits."""
        ...

    def pixels(self, signs_BZhw: Tensor) -> Tensor:
        """Pixels [B,3,H,W] in [-1,1] of bits as signs."""
        ...

    def codes(self, pixels_B3HW: Tensor) -> Tensor:
        """Codes [B,N]."""
        ...

    def decoded(self, codes_BN: Tensor) -> Tensor:
        """Pixels [B,3,H,W] of codes."""
        ...


class MagvitBits:
    """MAGVIT-v2 as a `BitTokenizer`."""

    def __init__(self, config: MAGVITv2Config = CONFIG) -> None:
        self.module = MAGVITv2(config)

    def bits(self, pixels_B3HW: Tensor) -> Tensor:
        """Logits of the bits."""
        logits: Tensor = 2 * self.module.encoder(pixels_B3HW)
        return logits

    def pixels(self, signs_BZhw: Tensor) -> Tensor:
        """Pixels of signs."""
        decoded: Tensor = self.module.decoder(signs_BZhw)
        return decoded

    def codes(self, pixels_B3HW: Tensor) -> Tensor:
        """Codes of pictures."""
        return self.module.get_code(pixels_B3HW)

    def decoded(self, codes_BN: Tensor) -> Tensor:
        """Pictures of codes."""
        return self.module.decode_code(codes_BN)


def scene_images(
    num: int, split: Split, rng: np.random.Generator, broken_share: float
) -> tuple[list[Scene], NDArray[np.uint8]]:
    """Scenes of all categories in turn and their pictures [num, H, W, 3]."""
    scenes = [sample_scene(CATEGORIES[i % len(CATEGORIES)], split, rng) for i in range(num)]
    draw = [render_broken(s, rng) if rng.random() < broken_share else render(s) for s in scenes]
    return scenes, np.stack(draw)


def to_pixels(images_BHW3: NDArray[np.uint8]) -> Tensor:
    """Pixels [B, 3, H, W] in [-1, 1] of uint8 images."""
    return torch.from_numpy(images_BHW3).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pixels_B3HW: Tensor) -> NDArray[np.uint8]:
    """uint8 images of pixels in [-1, 1]."""
    scaled = ((pixels_B3HW.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1)
    return scaled.numpy().astype(np.uint8)


def all_patches() -> NDArray[np.uint8]:
    """Every distinct patch [P, h, w, 3] that a rendered scene can have."""
    looks = [Object(0, *look) for look in itertools.product(SHAPES, COLORS, SIZES)]
    cells = np.stack([*map(cell_pixels, looks), np.full((CELL, CELL, 3), BACKGROUND, np.uint8)])
    side = CELL // PATCH
    patches = cells.reshape(-1, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.unique(patches.reshape(-1, PATCH, PATCH, 3), axis=0)


def tree_bits(patches: NDArray[np.uint8], depth: int) -> NDArray[np.int64]:
    """A different code [P, Z] of zeros and ones for each of at most 2**depth patches.

    Each bit splits its set in halves along the direction in which the patches differ most, so
    that similar patches share their leading bits.
    """
    flat = patches.reshape(len(patches), -1).astype(np.float64)
    bits = np.zeros((len(patches), depth), np.int64)
    groups = [np.arange(len(patches))]
    for level in range(depth):
        halves = []
        for group in groups:
            centred = flat[group] - flat[group].mean(0)
            direction = np.linalg.svd(centred, full_matrices=False)[2][0]
            order = group[np.argsort(centred @ direction, kind="stable")]
            low, high = np.array_split(order, 2)
            bits[high, level] = 1
            halves += [low, high]
        groups = [half for half in halves if len(half)]
    return bits


T = TypeVar("T", bound=BitTokenizer)


class Patches:
    """Pictures and collages of their patches, with the bits of every patch."""

    def __init__(self, images_BHW3: NDArray[np.uint8], patches: NDArray[np.uint8], bits: int):
        """`patches` are all that the pictures have, each once."""
        self.patches, self.patch = patches, patches.shape[1]
        self.bits_PZ = tree_bits(patches, bits)
        index = {patch.tobytes(): i for i, patch in enumerate(patches)}
        self.side = images_BHW3.shape[1] // self.patch
        tiles = tiles_of(images_BHW3, self.patch)
        self.images_BN = np.array([index[t.tobytes()] for t in tiles]).reshape(len(images_BHW3), -1)
        values, counts = np.unique(
            images_BHW3.reshape(-1, 3)[:: max(1, images_BHW3.size // 10**7)],
            axis=0,
            return_counts=True,
        )
        self.background = values[counts.argmax()]
        """The most frequent colour."""

    @classmethod
    def of_scenes(cls, rng: np.random.Generator) -> Patches:
        """Of the shapes world."""
        _, images = scene_images(6_000, "train", rng, 0.25)
        return cls(images, all_patches(), CONFIG.codebook_dim)

    @classmethod
    def of_images(cls, images_BHW3: NDArray[np.uint8], patch: int, bits: int) -> Patches:
        """Of any pictures whose sides are a multiple of `patch`."""
        flat = tiles_of(images_BHW3, patch).reshape(-1, patch * patch * 3)
        patches = np.unique(flat, axis=0).reshape(-1, patch, patch, 3)
        return cls(images_BHW3, patches, bits)

    def batch(self, size: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], Tensor]:
        """Images [B, H, W, 3] and the bits [B, Z, h, w] of their patches."""
        index_BN = self.images_BN[rng.integers(len(self.images_BN), size=size)]
        collage = rng.random((size, 1)) < 0.5
        anywhere_BN = rng.integers(len(self.patches), size=index_BN.shape)
        index_BN = np.where(collage, anywhere_BN, index_BN)
        tiles = self.patches[index_BN].reshape(size, self.side, self.side, *self.patches.shape[1:])
        images = tiles.swapaxes(2, 3).reshape(size, self.side * self.patch, -1, 3)
        bits_BNZ = torch.from_numpy(self.bits_PZ[index_BN])
        return images, bits_BNZ.transpose(1, 2).reshape(size, -1, self.side, self.side).float()


def tiles_of(images_BHW3: NDArray[np.uint8], patch: int) -> NDArray[np.uint8]:
    """The patches [B*N, patch, patch, 3] of pictures, row by row."""
    num, height, width, _ = images_BHW3.shape
    rows = images_BHW3.reshape(num, height // patch, patch, width // patch, patch, 3)
    return np.ascontiguousarray(rows.swapaxes(2, 3)).reshape(-1, patch, patch, 3)


@dataclass(frozen=True)
class TokenizerRecipe:
    """How a tokenizer is trained; the rate falls to zero on a cosine."""

    steps: int
    batch_size: int
    learning_rate: float


def train_tokenizer(
    make: Callable[[], T],
    recipe: TokenizerRecipe,
    *,
    seed: int,
    corpus_of: Callable[[np.random.Generator], Patches] = Patches.of_scenes,
    state: Path | None = None,
) -> T:
    """Fit encoder and decoder; with the running average of the weights.

    An interrupted run goes on from what it has left in the file `state`.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    corpus = corpus_of(rng)
    tokenizer = make()
    module = tokenizer.module
    module.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    optimizer = torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad],
        lr=recipe.learning_rate,
        weight_decay=0.0,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe.steps))
    snapshot = Snapshot(state, [module, average, optimizer, schedule], rng)
    done = snapshot.load()
    with Progress("tokenizer", recipe.steps) as bar:
        bar.update(done)
        for step in range(done + 1, recipe.steps + 1):
            images, bits = corpus.batch(recipe.batch_size, rng)
            loss = _loss(tokenizer, to_pixels(images), bits, corpus.background)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(module)
            bar.update(1)
            if step % SAVE_EVERY == 0:
                snapshot.save(step)
    module.load_state_dict(average.module.state_dict())
    module.eval()
    return tokenizer


def _loss(
    tokenizer: BitTokenizer, pixels: Tensor, bits_BZhw: Tensor, background: NDArray[np.uint8]
) -> Tensor:
    """Reconstruction that weighs objects, which are few of the pixels, and the tree's bits.

    The decoder reads the tree's bits too, so that it need not wait for the encoder.
    """
    logits_BZhw = tokenizer.bits(pixels)
    out = tokenizer.pixels(bits_BZhw * 2 - 1)
    ground = torch.from_numpy(background).view(1, 3, 1, 1) / 127.5 - 1
    is_object = (pixels - ground).abs().amax(1, keepdim=True) > 0.1
    near = torch.nn.functional.max_pool2d(is_object.float(), 3, stride=1, padding=1)
    weight = 0.3 + near * 2
    error = ((out - pixels).abs() + (out - pixels) ** 2).mean(1, keepdim=True)
    reconstruction = (weight * error).sum() / weight.sum()
    named: Tensor = torch.nn.functional.binary_cross_entropy_with_logits(logits_BZhw, bits_BZhw)
    loss: Tensor = reconstruction + BITS_WEIGHT * named
    return loss


def _rate(step: int, steps: int) -> float:
    """Share of the top rate: short warm-up, then a cosine to zero."""
    return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def evaluate_tokenizer(tokenizer: BitTokenizer, split: Split, num: int) -> dict[str, float]:
    """How the oracle reads reconstructions: share of scenes and objects right, codes in use."""
    scenes, images = scene_images(num, split, np.random.default_rng(7), broken_share=0.0)
    codes_BN = tokenizer.codes(to_pixels(images))
    seen = read(to_images(tokenizer.decoded(codes_BN)))
    kept = [len({*a.objects} & {*b.objects}) for a, b in zip(scenes, seen, strict=True)]
    return {
        "scenes": float(np.mean([a == b for a, b in zip(scenes, seen, strict=True)])),
        "objects": sum(kept) / sum(len(scene.objects) for scene in scenes),
        "malformed": float(np.mean([scene.malformed > 0 for scene in seen])),
        "codes": float(len(codes_BN.unique())),
    }
