"""`hermesflow pretrain`: make the shipped models of the shapes world from nothing.

Image tokenizer and network of a family, and the caption encoder, in that order; a finished one is
kept, so an interrupted run goes on with the next.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from core.files import new_folder
from tasks.pretrain.base import pretrain, word_tokenizer
from tasks.pretrain.caption_encoder import ScenePairs, ranking_table, train_caption_encoder
from tasks.pretrain.families import family_named
from tasks.pretrain.snapshot import read_weights, write_weights
from tasks.pretrain.tokenizer import evaluate_tokenizer, train_tokenizer


def make(family: str, out: Path, seed: int, quick: bool) -> None:
    """Write the model of a family and `out/caption_encoder`."""
    _make_model(family, out, seed, quick)
    if not (out / "caption_encoder").is_dir():
        with tempfile.TemporaryDirectory() as scratch:
            steps = 100 if quick else 4000
            encoder = train_caption_encoder(
                Path(scratch), ScenePairs(), steps=steps, num_pairs=64, lr=2e-3, seed=seed
            )
            print("similarity to the true caption, share ranked below its paraphrase:")
            for kind, (similarity, right) in ranking_table(encoder, "validation", 1000).items():
                print(f"  {kind:20} {similarity:.3f} {right:.3f}")
        with new_folder(out / "caption_encoder") as folder:
            encoder.save(str(folder), create_model_card=False)


def _make_model(name: str, out: Path, seed: int, quick: bool) -> None:
    """The image tokenizer waits in a file beside the folder of the model for the network."""
    family = family_named(name)
    made = family.shipped
    kept = out / f"{made.folder}-tokenizer.pt"
    if (out / made.folder).is_dir():
        return
    recipe, network = made.tokenizer, made.network
    if quick:
        recipe, network = replace(recipe, steps=20), replace(network, steps=10, num_scenes=600)
    if not kept.is_file():
        trained = train_tokenizer(made.bits, recipe, seed=seed)
        print("tokenizer, on validation scenes:", evaluate_tokenizer(trained, "validation", 1000))
        write_weights(kept, trained.module)
    bits = made.bits()
    read_weights(kept, bits.module)
    learner = pretrain(
        lambda: family.learner(bits, word_tokenizer(family.sentences, family.specials), made.sizes),
        network,
        seed=seed,
    )
    with new_folder(out / made.folder) as folder:
        learner.model().save_pretrained(folder)
    kept.unlink()
