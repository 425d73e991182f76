"""`hermesflow pretrain`: make the shipped models of the shapes world from nothing.

Image tokenizer and network of a family, and the caption encoder, in that order; a finished one is
kept, so an interrupted run goes on with the next.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from data.shapes.render import CELL
from data.shapes.scene import GRID
from models.tokenizers.magvitv2 import MAGVITv2
from tasks.pretrain.base import L, Recipe, pretrain
from tasks.pretrain.caption_encoder import ScenePairs, ranking_table, train_caption_encoder
from tasks.pretrain.tokenizer import (
    MagvitBits,
    T,
    TokenizerRecipe,
    evaluate_tokenizer,
    train_tokenizer,
)

IMAGE_SIZE = GRID * CELL
MAGVIT = TokenizerRecipe(steps=2500, batch_size=64, learning_rate=3e-3)


def make(family: str, out: Path, seed: int, quick: bool) -> None:
    """Write the base of a family and `out/caption_encoder`."""
    {"showo": make_showo, "janus": make_janus, "vila_u": make_vila_u}[family](out, seed, quick)
    if not (out / "caption_encoder").is_dir():
        with tempfile.TemporaryDirectory() as scratch:
            steps = 100 if quick else 4000
            encoder = train_caption_encoder(
                Path(scratch), ScenePairs(), steps=steps, num_pairs=64, lr=2e-3, seed=seed
            )
            print("similarity to the true caption, share ranked below its paraphrase:")
            for kind, (similarity, right) in ranking_table(encoder, "validation", 1000).items():
                print(f"  {kind:20} {similarity:.3f} {right:.3f}")
            encoder.save(str(out / "caption_encoder"), create_model_card=False)


def make_showo(out: Path, seed: int, quick: bool) -> None:
    """Write `out/base`."""
    from tasks.pretrain.showo import ShowoLearner

    folder = out / "base"
    if not (folder / "vq" / "config.json").is_file():
        _tokenizer(MagvitBits, MAGVIT, seed, quick).module.save_pretrained(folder / "vq")
    if not (folder / "model.safetensors").is_file():
        vq = MAGVITv2.from_pretrained(folder / "vq")
        learner = _network(lambda: ShowoLearner(vq), Recipe(), seed, quick)
        learner.model().save_pretrained(folder)


def make_janus(out: Path, seed: int, quick: bool) -> None:
    """Write `out/janus`; the image tokenizer waits in `out/janus-vq.pt` for the network."""
    from models.families.janus.vq import JanusVQ
    from tasks.pretrain.chat import RECIPE
    from tasks.pretrain.janus import TOKENIZER, JanusBits, JanusLearner

    folder, kept = out / "janus", out / "janus-vq.pt"
    if (folder / "model.safetensors").is_file():
        return
    bits = _kept_tokenizer(kept, lambda: JanusBits(IMAGE_SIZE), TOKENIZER, seed, quick)
    vq = JanusVQ(bits.module)
    learner = _network(lambda: JanusLearner(vq, IMAGE_SIZE), RECIPE, seed, quick)
    learner.model().save_pretrained(folder)
    kept.unlink()


def make_vila_u(out: Path, seed: int, quick: bool) -> None:
    """Write `out/vila_u`; the tower waits in `out/vila_u-tower.pt` for the network."""
    from tasks.pretrain.chat import RECIPE
    from tasks.pretrain.vila_u import TOKENIZER, TowerBits, VilaULearner

    folder, kept = out / "vila_u", out / "vila_u-tower.pt"
    if (folder / "model.safetensors").is_file():
        return
    bits = _kept_tokenizer(kept, lambda: TowerBits(IMAGE_SIZE), TOKENIZER, seed, quick)
    tower = bits.module.requires_grad_(False)
    learner = _network(lambda: VilaULearner(tower), RECIPE, seed, quick)
    learner.model().save_pretrained(folder)
    kept.unlink()


def _kept_tokenizer(
    kept: Path, make: Callable[[], T], recipe: TokenizerRecipe, seed: int, quick: bool
) -> T:
    """The tokenizer whose weights are in a file, which is made where there is none."""
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(_tokenizer(make, recipe, seed, quick).module.state_dict(), kept)
    bits = make()
    bits.module.load_state_dict(torch.load(kept, weights_only=True))
    return bits


def _tokenizer(make: Callable[[], T], recipe: TokenizerRecipe, seed: int, quick: bool) -> T:
    made = train_tokenizer(make, replace(recipe, steps=20) if quick else recipe, seed=seed)
    print("tokenizer, on validation scenes:", evaluate_tokenizer(made, "validation", 1000))
    return made


def _network(make: Callable[[], L], recipe: Recipe, seed: int, quick: bool) -> L:
    chosen = replace(recipe, steps=10, num_scenes=600) if quick else recipe
    return pretrain(make, chosen, seed=seed)
