"""`python -m tasks.pretrain`: make the shipped models of the shapes world from nothing.

Tokenizer, network and caption encoder, in that order; a finished one is kept, so an interrupted run
goes on with the next.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch

from core.command import run_command
from core.runtime import setup_logging
from models.families.showo.model import ShowoModel
from models.tokenizers.magvitv2 import MAGVITv2
from tasks.pretrain.base import NUM_SCENES, Recipe, build_tokenizer, pretrain
from tasks.pretrain.caption_encoder import ranking_table, train_caption_encoder
from tasks.pretrain.tokenizer import evaluate_tokenizer, train_tokenizer


def make(out: Path, seed: int, quick: bool) -> None:
    """Write `out/base` and `out/caption_encoder`."""
    if not (out / "base" / "vq" / "config.json").is_file():
        vq = train_tokenizer(
            steps=20 if quick else 2500, batch_size=64, learning_rate=3e-3, seed=seed
        )
        print("tokenizer, on validation scenes:", evaluate_tokenizer(vq, "validation", 1000))
        vq.save_pretrained(out / "base" / "vq")
    if not (out / "base" / "model.safetensors").is_file():
        vq = MAGVITv2.from_pretrained(out / "base" / "vq")
        recipe = Recipe(steps=10) if quick else Recipe()
        network = pretrain(vq, recipe, num_scenes=600 if quick else NUM_SCENES, seed=seed)
        ShowoModel(network, vq, build_tokenizer()).save_pretrained(out / "base")
    if not (out / "caption_encoder").is_dir():
        with tempfile.TemporaryDirectory() as scratch:
            steps = 100 if quick else 4000
            encoder = train_caption_encoder(
                Path(scratch), steps=steps, num_pairs=64, lr=2e-3, seed=seed
            )
            print("similarity to the true caption, share ranked below its paraphrase:")
            for kind, (similarity, right) in ranking_table(encoder, "validation", 1000).items():
                print(f"  {kind:20} {similarity:.3f} {right:.3f}")
            encoder.save(str(out / "caption_encoder"), create_model_card=False)


def main() -> int:
    """Parse the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tasks.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("models/assets/shapes-new"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="a few steps, to see it work")
    options = parser.parse_args()
    setup_logging()
    torch.set_num_threads(options.threads)
    return run_command(lambda: make(options.out, options.seed, options.quick))


if __name__ == "__main__":
    sys.exit(main())
