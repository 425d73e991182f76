"""Train the MAGVIT-v2 tokenizer of the shapes world. Shapes: B images, H W pixels, Z bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from core.progress import Progress
from data.shapes.oracle import read
from data.shapes.render import BACKGROUND, render, render_broken
from data.shapes.scene import CATEGORIES, Object, Scene, Split, sample_scene
from models.magvitv2 import MAGVITv2, MAGVITv2Config, StackConfig, lfq_entropy_loss

CONFIG = MAGVITv2Config(
    StackConfig(16, (1, 1, 2, 4), (0, 1, 1, 1)),
    StackConfig(16, (1, 1, 2, 4), (1, 1, 1, 1)),
    codebook_dim=10,
    groupnorm_groups=1,
)
BROKEN_SHARE = 0.25  # Generated pictures have mistakes, and the tokenizer has to carry them.


def scene_images(
    num: int, split: Split, rng: np.random.Generator, broken_share: float
) -> tuple[list[Scene], NDArray[np.uint8]]:
    """Scenes of all categories in turn and their pictures [num, H, W, 3]."""
    scenes = [sample_scene(CATEGORIES[i % len(CATEGORIES)], split, rng) for i in range(num)]
    draw = [
        render_broken(s, rng) if rng.random() < broken_share else render(s) for s in scenes
    ]
    return scenes, np.stack(draw)


def to_pixels(images_BHW3: NDArray[np.uint8]) -> Tensor:
    """Pixels [B, 3, H, W] in [-1, 1] of uint8 images."""
    return torch.from_numpy(images_BHW3).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pixels_B3HW: Tensor) -> NDArray[np.uint8]:
    """uint8 images of pixels in [-1, 1]."""
    scaled = ((pixels_B3HW.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1)
    return scaled.numpy().astype(np.uint8)


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own annealed rate."""

    steps: int
    learning_rate: float
    permuted_share: float


# The second phase shows pictures with their colour channels permuted: shapes in colours that no
# scene has. Without it the tokenizer blurs the colour-shape pairs that are held out (94 % of the
# questions right on their reconstructions instead of 98 %).
PHASES = (Phase(3000, 3e-3, 0.0), Phase(1500, 1e-3, 0.4))


def train_tokenizer(
    phases: Sequence[Phase], *, batch_size: int, seed: int, start: MAGVITv2 | None = None
) -> MAGVITv2:
    """Fit the tokenizer with a loss that weighs objects, which are few of the pixels."""
    torch.manual_seed(seed)
    model = start or MAGVITv2(CONFIG)
    _, images = scene_images(24_000, "train", np.random.default_rng(seed), BROKEN_SHARE)
    for number, phase in enumerate(phases):
        rng = np.random.default_rng([seed, number])
        model = _run_phase(model, phase, images, batch_size, rng)
        print(phase, evaluate_tokenizer(model, "validation", 1000), flush=True)
    return model


def _run_phase(
    model: MAGVITv2,
    phase: Phase,
    images: NDArray[np.uint8],
    batch_size: int,
    rng: np.random.Generator,
) -> MAGVITv2:
    """Train for a phase; returns the running average of the weights."""
    model = model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=phase.learning_rate, weight_decay=0.0, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: _rate(i, phase.steps))
    with Progress("tokenizer", phase.steps) as bar:
        for _ in range(phase.steps):
            batch = images[rng.integers(len(images), size=batch_size)]
            if phase.permuted_share:
                batch = _permute_channels(batch, phase.permuted_share, rng)
            loss = _loss(model, to_pixels(batch))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            bar.update(1)
    averaged: MAGVITv2 = average.module
    return averaged.eval()


def _permute_channels(
    images: NDArray[np.uint8], share: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    return np.stack(
        [image[..., rng.permutation(3)] if rng.random() < share else image for image in images]
    )


def _loss(model: MAGVITv2, pixels: Tensor) -> Tensor:
    z_BZhw, entries, _ = model.encode(pixels)
    out = model.decoder(entries)
    background = torch.tensor(BACKGROUND).view(1, 3, 1, 1) / 127.5 - 1
    is_object = (pixels - background).abs().amax(1, keepdim=True) > 0.1
    near = torch.nn.functional.max_pool2d(is_object.float(), 3, stride=1, padding=1)
    weight = 0.3 + near * 2
    error = ((out - pixels).abs() + (out - pixels) ** 2).mean(1, keepdim=True)
    single, mean = lfq_entropy_loss(z_BZhw, scale=1.0)
    commit = (z_BZhw.abs() - 1).square().mean()
    return (weight * error).sum() / weight.sum() + 0.02 * (single - mean) + 0.05 * commit


def _rate(step: int, steps: int) -> float:
    """Share of the top rate: short warm-up, then a cosine to zero."""
    return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def evaluate_tokenizer(model: MAGVITv2, split: Split, num: int) -> dict[str, float]:
    """How the oracle reads reconstructions: share of scenes and objects right, codes in use."""
    scenes, images = scene_images(num, split, np.random.default_rng(7), broken_share=0.0)
    codes_BN = model.get_code(to_pixels(images))
    seen = read(to_images(model.decode_code(codes_BN)))
    objects = [(set(map(_look, s.objects)), set(map(_look, r.objects))) for s, r in zip(scenes, seen)]
    return {
        "scenes": float(np.mean([s.digest == r.digest and not r.malformed for s, r in zip(scenes, seen)])),
        "objects": sum(len(a & b) for a, b in objects) / sum(len(a) for a, _ in objects),
        "malformed": float(np.mean([r.malformed > 0 for r in seen])),
        "codes": float(len(codes_BN.unique())),
    }


def _look(item: Object) -> tuple[int, str, str, str]:
    return (item.cell, item.shape, item.color, item.size)
