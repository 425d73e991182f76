"""`hermesflow pretrain CONFIG`: a small model of one's own, from nothing but a pool with questions.

Image tokenizer, network and caption encoder, in that order. A finished one is kept, and one that
was interrupted goes on where it was.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from core.artifact import content_digest
from core.errors import UserError
from core.files import new_folder, sha256_of
from core.progress import Progress, bars_by
from core.settings import leaves
from data.tables import count_rows, parquet_files
from evals.networks.caption_scorer import CaptionScorer
from evals.vqa import ask
from models.protocol import TextSampling
from models.registry import load_model
from tasks.pretrain.base import Mixture, Recipe, pretrain
from tasks.pretrain.caption_encoder import train_caption_encoder
from tasks.pretrain.captions import PoolPairs
from tasks.pretrain.families import Sizes, family_named
from tasks.pretrain.records import PoolCorpus, byte_tokenizer, read_records, texts_of
from tasks.pretrain.settings import Pretraining
from tasks.pretrain.snapshot import read_weights, write_weights
from tasks.pretrain.tokenizer import Patches, TokenizerRecipe, train_tokenizer

MEASURED = 1000
"""Records of validation at most."""
TIMED = 6
"""Steps by which the time of a part is estimated."""
TIMED_RECORDS = 128
AT_ONCE = 64
FIGURES = "figures.json"
SETTINGS = "pretraining.json"


class Own:
    """A model that is made of a pool, part by part, in a folder."""

    def __init__(self, settings: Pretraining, out: Path) -> None:
        """Read the records; UserError for tables that cannot be learnt from."""
        self.settings, self.out = settings, out
        self._family = family_named(settings.family)
        self._tokenizer = out / ".state/tokenizer-done.pt"
        self.records, self.images = read_records(settings.records.train, settings.image_size)
        self.held_out, self.held_out_images = read_records(
            settings.records.validation, settings.image_size
        )

    def make(self) -> None:
        """Make what is missing, and measure what came of it.

        UserError for a folder whose parts were made with other settings or of other records.
        """
        self._claim()
        model = self.out / "model"
        parts = [
            (model.is_dir() or self._tokenizer.is_file(), self.train_tokenizer),
            (model.is_dir(), self.train_network),
            ((self.out / "caption_encoder").is_dir(), self.train_encoder),
        ]
        missing = [train for is_there, train in parts if not is_there]
        given = count_rows(parquet_files(self.settings.records.train))
        print(
            f"{len(self.records)} of {given} records to learn from, "
            f"{len(parts) - len(missing)} parts ready"
        )
        if missing:
            print(f"about {sum(map(seconds_of, missing)) / 60:.0f} minutes on this machine")
        for train in missing:
            train(None)
        figures = self.figures()
        (self.out / FIGURES).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        for name, value in figures.items():
            print(f"{name:32} {value:.3f}")

    def _claim(self) -> None:
        """Note what the folder's parts are made with, or compare it with what was noted."""
        # Validation has no part in them, and a table is what it holds, wherever it stands.
        settings = self.settings.model_dump(mode="json", exclude={"records"})
        files = parquet_files(self.settings.records.train)
        digest = content_digest({file.name: sha256_of(file) for file in files})
        now = leaves(settings) | {"records.train": digest}
        noted = self.out / SETTINGS
        if noted.is_file():
            before = json.loads(noted.read_text(encoding="utf-8"))
            changed = [name for name in now if before.get(name) != now[name]]
            if changed:
                raise UserError(
                    f"{self.out} holds parts that were made otherwise: "
                    + ", ".join(f"{n} = {before.get(n)}, now {now[n]}" for n in changed)
                    + "; give another --out, or the settings from before"
                )
        elif any((self.out / name).exists() for name in ("model", "caption_encoder", ".state")):
            raise UserError(
                f"{self.out} holds a model, but no {SETTINGS} that says how it was made; give "
                "another --out"
            )
        else:
            self.out.mkdir(parents=True, exist_ok=True)
            noted.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")

    @cached_property
    def _patches(self) -> Patches:
        tokenizer = self.settings.tokenizer
        return Patches.of_images(self.images, tokenizer.patch, tokenizer.bits)

    def train_tokenizer(self, steps: int | None) -> int:
        """Keep its weights for the network; with `steps`, only take so many. Returns all steps."""
        chosen = self.settings.tokenizer
        recipe = TokenizerRecipe(steps or chosen.steps, chosen.batch_size, chosen.learning_rate)
        state = self.out / ".state/tokenizer.pt"
        made = train_tokenizer(
            lambda: self._family.bits(self._sizes),
            recipe,
            seed=self.settings.seed,
            corpus_of=lambda _: self._patches,
            state=None if steps else state,
        )
        if not steps:
            write_weights(self._tokenizer, made.module)
            state.unlink(missing_ok=True)
        return chosen.steps

    def train_network(self, steps: int | None) -> int:
        """Write `model`, likewise."""
        chosen, state = self.settings.network, self.out / ".state/network.pt"
        bits, most = self._family.bits(self._sizes), len(self.records)
        if steps:  # the weights of the image tokenizer do not change the time of a step
            bits.module.eval()
            most = TIMED_RECORDS
        else:
            read_weights(self._tokenizer, bits.module)
        recipe = Recipe(
            steps=steps or chosen.steps,
            warmup=chosen.warmup,
            matrix_rate=chosen.matrix_rate,
            learning_rate=chosen.learning_rate,
            t2i_rows=chosen.t2i_rows,
            mmu_rows=chosen.mmu_rows,
            mmu_weight=chosen.mmu_weight,
            questions=chosen.questions,
            mixture=Mixture(captioned_share=chosen.captioned_share),
        )
        learner = pretrain(
            lambda: self._family.learner(bits, self._words(), self._sizes),
            recipe,
            seed=self.settings.seed,
            corpus_of=lambda learner, _, rng: PoolCorpus(
                self.records[:most], self.images[:most], learner, shift=chosen.shift, rng=rng
            ),
            state=None if steps else state,
        )
        if not steps:
            with new_folder(self.out / "model") as folder:
                learner.model().save_pretrained(folder)
            state.unlink(missing_ok=True)
            self._tokenizer.unlink()
        return chosen.steps

    def _words(self) -> Tokenizer:
        texts = [*self._family.sentences, *texts_of(self.records)]
        return byte_tokenizer(texts, self.settings.network.vocabulary, self._family.specials)

    @cached_property
    def _sizes(self) -> Sizes:
        tokenizer, network = self.settings.tokenizer, self.settings.network
        red, green, blue = (self.images.mean((0, 1, 2)) / 255).round(3).tolist()
        return Sizes(
            image_size=self.settings.image_size,
            patch=tokenizer.patch,
            bits=tokenizer.bits,
            channels=tokenizer.channels,
            width=network.width,
            layers=network.layers,
            heads=network.heads,
            max_text_len=network.max_text_len,
            mean=(red, green, blue),
        )

    def train_encoder(self, steps: int | None) -> int:
        """Write `caption_encoder`, likewise; an interrupted one begins again."""
        chosen = self.settings.caption_encoder
        with tempfile.TemporaryDirectory() as scratch:
            encoder = train_caption_encoder(
                Path(scratch),
                PoolPairs([record.caption for record in self.records]),
                steps=steps or chosen.steps,
                num_pairs=chosen.batch_size,
                lr=chosen.learning_rate,
                seed=self.settings.seed,
            )
        if not steps:
            with new_folder(self.out / "caption_encoder") as folder:
                encoder.save(str(folder), create_model_card=False)
        return chosen.steps

    def figures(self) -> dict[str, float]:
        """What the parts are worth on records that they have not learnt from."""
        model = load_model(self.settings.family, self.out / "model", "cpu")
        records, images = self.held_out[:MEASURED], self.held_out_images[:MEASURED]
        scorer = CaptionScorer(self.out / "caption_encoder", "cpu")
        errors: list[float] = []
        right: dict[str, list[float]] = defaultdict(list)
        chance: dict[str, list[float]] = defaultdict(list)
        captions: list[str] = []
        greedy = TextSampling(1.0, 1, self.settings.network.max_text_len)
        with Progress("measure", len(records)) as bar:
            for first in range(0, len(records), AT_ONCE):
                part = records[first : first + AT_ONCE]
                shown = images[first : first + AT_ONCE]
                pictures = [Image.fromarray(image) for image in shown]
                again = np.stack([np.asarray(i) for i in model.decode(model.encode(pictures))])
                errors += list(((again.astype(float) - shown) ** 2).mean((1, 2, 3)))
                seen = model.see(pictures)
                for answers in ask(model, seen, [record.questions for record in part]):
                    for one in answers:
                        for kind in ("all", one.question["type"]):
                            right[kind].append(one.right)
                            chance[kind].append(1 / len(one.question["choices"]))
                captions += [text for (text,) in model.caption(seen, [greedy], [0] * len(part))]
                bar.update(len(part))
        true = [record.caption for record in records]
        return {
            "reconstruction/psnr_db": float(
                np.mean(-10 * np.log10(np.maximum(errors, 1e-3) / 255**2))
            ),
            "captions/exact": float(np.mean([a == b for a, b in zip(captions, true, strict=True)])),
            "captions/similarity": float(np.mean(scorer.score(captions, [[t] for t in true]))),
            **{f"understanding/{kind}": float(np.mean(found)) for kind, found in right.items()},
            **{f"chance/{kind}": float(np.mean(found)) for kind, found in chance.items()},
        }


class _Clock:
    """A bar that draws nothing and notes when each step was done."""

    total: float | None = None

    def __init__(self) -> None:
        self.times: list[float] = []

    def update(self, amount: int) -> None:
        """A step is done."""
        if amount:
            self.times.append(time.monotonic())

    def close(self) -> None:
        """The last one was."""


def seconds_of(train: Callable[[int | None], int]) -> float:
    """How long a part is going to take, by the median of some of its steps."""
    clock = _Clock()
    with bars_by(lambda *_: clock):
        steps = train(TIMED)
    return steps * float(np.median(np.diff(clock.times)))
