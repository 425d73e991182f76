"""What every family must hold: `hermesflow conformance FAMILY FOLDER` checks a model.

Stages rely on these: results do not depend on batches, each record has its own noise, likelihoods
are those of the network, a saved model is the same model, and every trained weight learns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
import torch
from PIL import Image

from core.command import moved
from core.errors import UserError
from models.protocol import (
    MODALITIES,
    Autoregressive,
    BranchLogps,
    ImageSampling,
    MaskPredict,
    Modality,
    PairBatch,
    RedrawBatch,
    TextRole,
    TextSampling,
    UnifiedModel,
)
from models.registry import Family, family

PROMPTS = ("a red circle", "two blue squares and a circle", "a circle")
CAPTIONS = ("one red circle", "two squares", "a large blue circle in the middle")
QUESTIONS = (
    [("What color is the circle?", ["red", "blue", "green"]), ("How many?", ["one", "two"])],
    [("Is there a square?", ["yes", "no"])],
    [("What is it?", ["a circle", "a square"])],
)
SAMPLINGS = (TextSampling(1.0, 1, 6), TextSampling(1.0, None, 6), TextSampling(1.5, 5, 4))
SEEDS = (3, 5, 8)
# Sums of float32 in another order, relative to the sum.
CLOSE = 2e-4


@dataclass(frozen=True)
class Check:
    """One property, and what speaks against it: nothing if it holds."""

    name: str
    problem: str = ""


def checks(model: UnifiedModel, of: Family) -> Iterator[Check]:
    """All properties of a model; its weights are as before afterwards."""
    pictures = _pictures(model)
    yield from _shapes(model, pictures)
    yield from _drawing(model)
    yield from _reading(model, pictures)
    yield from _likelihood(model, pictures)
    if of.redraws:
        yield from _redraws(model, pictures)
    yield from _gradients(model, pictures)
    yield from _saved(model, of, pictures)
    yield from _texts(model)


def _check(name: str, holds: bool, problem: str) -> Check:
    return Check(name, "" if holds else problem)


def _pictures(model: UnifiedModel) -> list[Image.Image]:
    """Pictures of different sizes and modes."""
    random = np.random.default_rng(0)
    sizes = ((40, 40, 3), (64, 48, 3), (30, 50, 3))
    return [Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)) for size in sizes]


def _sampling(model: UnifiedModel, guidance: float = 0.0) -> ImageSampling:
    if model.sampler == "mask_predict":
        return MaskPredict(steps=3, guidance=guidance)
    return Autoregressive(guidance=guidance)


def _shapes(model: UnifiedModel, pictures: Sequence[Image.Image]) -> Iterator[Check]:
    drawn = model.encode(pictures)
    yield _check(
        "encoded pictures have the declared shape",
        drawn.shape == (len(pictures), *model.drawn_shape) and drawn.dtype == np.int64,
        f"shape {drawn.shape} of {drawn.dtype}, declared {model.drawn_shape} of int64",
    )
    shown = model.decode(drawn)
    yield _check(
        "decoded pictures are RGB",
        len(shown) == len(pictures) and all(image.mode == "RGB" for image in shown),
        f"{len(shown)} pictures of modes {sorted({image.mode for image in shown})}",
    )
    counts = (len(model.see(pictures)), len(model.see_drawn(drawn)))
    yield _check("every picture is seen", counts == (len(pictures),) * 2, f"{counts} rows")


def _drawing(model: UnifiedModel) -> Iterator[Check]:
    for guidance in (0.0, 2.0):
        how = _sampling(model, guidance)
        drawn = model.generate(PROMPTS, 2, how, SEEDS)
        suffix = " with guidance" if guidance else ""
        alone = [model.generate([p], 2, how, [s])[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
        yield _check(
            f"pictures do not depend on their batch{suffix}",
            drawn.shape == (len(PROMPTS), 2, *model.drawn_shape) and bool((drawn == alone).all()),
            f"{int((drawn != alone).sum())} of {drawn.size} codes differ",
        )
    how = _sampling(model)
    more = model.generate(PROMPTS, 3, how, SEEDS)
    drawn = model.generate(PROMPTS, 2, how, SEEDS)
    yield _check("more samples change no other", bool((more[:, :2] == drawn).all()), "they do")
    other = model.generate(PROMPTS, 2, how, [seed + 1 for seed in SEEDS])
    yield _check("another seed gives other pictures", bool((other != drawn).any()), "the same")


def _reading(model: UnifiedModel, pictures: Sequence[Image.Image]) -> Iterator[Check]:
    seen = model.see(pictures)
    together = model.caption(seen, SAMPLINGS, SEEDS)
    alone = [model.caption(seen[i : i + 1], SAMPLINGS, [SEEDS[i]])[0] for i in range(len(seen))]
    yield _check("captions do not depend on their batch", together == alone, f"{together}, {alone}")
    replies = model.reply(seen, QUESTIONS)
    alone = [model.reply(seen[i : i + 1], [QUESTIONS[i]])[0] for i in range(len(seen))]
    yield _check("replies do not depend on their batch", replies == alone, f"{replies}, {alone}")
    answers = model.answer(seen, QUESTIONS)
    one_by_one = [
        [model.answer(seen[i : i + 1], [[question]])[0][0] for question in asked]
        for i, asked in enumerate(QUESTIONS)
    ]
    pairs = [
        (a, b)
        for image, again in zip(answers, one_by_one, strict=True)
        for a, b in zip(image, again, strict=True)
    ]
    error = max(float(np.abs(a - b).max()) for a, b in pairs)
    yield _check("answers are those of each question alone", error < CLOSE, f"off by {error:.1e}")
    turned = [[(text, choices[::-1]) for text, choices in asked] for asked in QUESTIONS]
    error = max(
        float(np.abs(a - b[::-1]).max())
        for image, again in zip(answers, model.answer(seen, turned), strict=True)
        for a, b in zip(image, again, strict=True)
    )
    same = getattr(getattr(model, "config", None), "list_choices", False)
    if not same:  # a prompt that names the choices is another prompt in another order
        yield _check("the order of choices does not matter", error < CLOSE, f"off by {error:.1e}")
    total = max(abs(float(a.sum()) - 1) for a, _ in pairs)
    yield _check("answers are probabilities", total < CLOSE, f"sums are off by {total:.1e}")


def _pairs(model: UnifiedModel, pictures: Sequence[Image.Image]) -> PairBatch:
    return PairBatch(
        seen=model.see(pictures),
        captions_win=CAPTIONS,
        captions_lose=CAPTIONS[::-1],
        prompts=PROMPTS,
        drawn_win=model.encode(pictures),
        drawn_lose=model.encode(pictures[::-1]),
        draw_seeds=SEEDS,
        unprompted=[False] * len(SEEDS),
        num_draws=0 if model.exact_images else 2,
    )


@torch.no_grad()
def _logps(model: UnifiedModel, pairs: PairBatch, modality: Modality) -> torch.Tensor:
    """[B,4] of a modality, in float64."""
    return torch.stack([part.double() for part in model.pair_logps(pairs, modality)], dim=1).cpu()


def _off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(((found - wanted).abs() / wanted.abs().clamp(min=1.0)).max())


def _likelihood(model: UnifiedModel, pictures: Sequence[Image.Image]) -> Iterator[Check]:
    pairs = _pairs(model, pictures)
    for modality in MODALITIES:
        found = _logps(model, pairs, modality)
        alone = [_logps(model, pairs.take(slice(i, i + 1)), modality) for i in range(len(found))]
        error = _off(found, torch.cat(alone))
        yield _check(
            f"likelihoods of {modality}s do not depend on their batch",
            error < CLOSE,
            f"off by {error:.1e}",
        )
        turned = replace(
            pairs,
            captions_win=pairs.captions_lose,
            captions_lose=pairs.captions_win,
            drawn_win=pairs.drawn_lose,
            drawn_lose=pairs.drawn_win,
        )
        error = _off(_logps(model, turned, modality)[:, [1, 0, 3, 2]], found)
        yield _check(
            f"winner and loser are treated alike: {modality}s",
            error < CLOSE,
            f"off by {error:.1e}",
        )
    bare = replace(pairs, unprompted=[True] * len(SEEDS))
    for modality, changes in (("caption", False), ("image", True)):
        changed = _off(_logps(model, bare, modality), _logps(model, pairs, modality)) > CLOSE
        yield _check(
            f"a pair without its prompt is another one: {modality}s",
            changed == changes,
            f"it {'changes' if changed else 'does not change'}",
        )
    other = replace(pairs, draw_seeds=[seed + 1 for seed in SEEDS])
    same = _off(_logps(model, other, "image"), _logps(model, pairs, "image")) < CLOSE
    yield _check(
        "the likelihood of images is exact" if model.exact_images else "draws follow their seeds",
        same == model.exact_images,
        f"other draws {'do not ' if same else ''}change it",
    )


def _redraws(model: UnifiedModel, pictures: Sequence[Image.Image]) -> Iterator[Check]:
    batch = RedrawBatch(
        model.see(pictures), model.encode(pictures), SEEDS, 0 if model.exact_images else 2
    )
    found = _redrawn(model, batch)
    alone = [
        _redrawn(
            model,
            replace(batch, seen=batch.seen[[i]], drawn=batch.drawn[[i]], draw_seeds=[SEEDS[i]]),
        )
        for i in range(len(found))
    ]
    error = _off(found, torch.cat(alone))
    yield _check(
        "redrawn pictures do not depend on their batch", error < CLOSE, f"off by {error:.1e}"
    )
    other = _off(_redrawn(model, replace(batch, seen=batch.seen[[1, 2, 0]])), found)
    yield _check("a redrawn picture depends on what is read", other > CLOSE, "it does not")
    tokens = _logps(model, _pairs(model, pictures), "image")[:, 2]
    same = torch.equal(found[:, 2], tokens)
    yield _check(
        "a redrawn picture has as many tokens as a drawn one", same, f"{found[:, 2]}, {tokens}"
    )


@torch.no_grad()
def _redrawn(model: UnifiedModel, batch: RedrawBatch) -> torch.Tensor:
    """[B,4], in float64."""
    logps: BranchLogps = model.pair_module(model.pack_redraws(batch))
    return torch.stack([part.double() for part in logps], dim=1).cpu()


def _gradients(model: UnifiedModel, pictures: Sequence[Image.Image]) -> Iterator[Check]:
    module = model.pair_module
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    pairs = _pairs(model, pictures)
    module.zero_grad()
    for modality in MODALITIES:
        logps: BranchLogps = module(model.pack_pairs(pairs, modality))
        (logps.chosen_logps_B - logps.rejected_logps_B).sum().backward()
    without = sorted(name for name, p in trained.items() if p.grad is None or not p.grad.any())
    module.zero_grad()
    yield _check(
        "a gradient reaches every trained weight", not without, f"none of {', '.join(without[:5])}"
    )


def _saved(model: UnifiedModel, of: Family, pictures: Sequence[Image.Image]) -> Iterator[Check]:
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        missing = [name for name in of.files if not Path(folder, name).is_file()]
        yield _check("a saved folder has the declared files", not missing, f"without {missing}")
        device = str(next(model.network.parameters()).device)
        again = of.load(Path(folder), device, None)
    pairs = _pairs(model, pictures)
    differing = [
        modality
        for modality in MODALITIES
        if not torch.equal(_logps(model, pairs, modality), _logps(again, pairs, modality))
    ]
    how = _sampling(model)
    drawn, redrawn = (one.generate(PROMPTS, 1, how, SEEDS) for one in (model, again))
    if not np.array_equal(drawn, redrawn):
        differing.append("image")
    yield _check("a saved model is the same model", not differing, f"other {differing}")


def _texts(model: UnifiedModel) -> Iterator[Check]:
    long = " ".join(["a red circle"] * 500)
    for role in get_args(TextRole):
        short, cut = model.text_uses(["a red circle", long], role)
        yield _check(
            f"a cut text is counted as a {role}",
            not short.cut and len(cut.ids) <= cut.num_tokens,
            f"{len(short.ids)} of {short.num_tokens}, {len(cut.ids)} of {cut.num_tokens} tokens",
        )


def show(name: str, folder: Path, device: str) -> None:
    """Print one line for each property of the model in a folder; UserError if any does not hold."""
    of = family(name)
    failed = 0
    for check in checks(of.load(folder, device, "float32"), of):
        failed += bool(check.problem)
        print(f"{'MISS' if check.problem else 'ok  '} {check.name} {check.problem}".rstrip())
    if failed:
        raise UserError(f"{failed} properties do not hold; see models/conformance.py")


if __name__ == "__main__":
    moved("conformance")
