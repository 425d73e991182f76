"""`python -m bench.peers`: a Janus of middle size beside the published loop and transformers.

All three sides have the same random weights. *Published*: the scripts of the published code in our
words, one caption and one choice at a time, rows of pictures that repeat their prompt.
*transformers*: its `generate` and `generation_mode="image"`. Greedy results must be equal. Writes
peers.md into --to. Measure on an idle machine.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, JanusForConditionalGeneration
from transformers.models.janus.modeling_janus import JanusVQVAE
from transformers.utils import logging

from bench.gpu import hardware, seconds_of
from models.families.janus.config import Preprocessing
from models.families.janus.model import JanusModel, Kept
from models.families.janus.network import Janus
from models.families.janus.vq import JanusVQ
from models.nn.chat import read_picture
from models.protocol import Autoregressive, TextSampling
from models.tokenizers.chat import CAPTION_QUESTION, Ids
from tasks.pretrain.base import word_tokenizer
from tasks.pretrain.chat import SHAPES
from tasks.pretrain.janus import FAMILY, base_config, build_tokenizer

WIDTH, SIZE, PATCH, CAPTIONS, TOKENS, PICTURES = 256, 96, 8, 10, 24, 16
PROMPT = "a red circle and two blue squares"
CHOICES = ["red", "blue", "green", "yellow"]
QUESTIONS = [("what color is the circle?", CHOICES), ("how many squares are there?", ["1", "2"])]
SIDES = ("ours", "transformers", "published")
Call = Callable[[], Any]


def middle_model() -> JanusModel:
    """9 M parameters, 144 positions of a picture either way."""
    small = base_config(64, replace(SHAPES, image_size=SIZE))
    words = word_tokenizer(FAMILY.sentences, FAMILY.specials)
    tokenizer = build_tokenizer(words, small)
    sizes = small.sizes.to_dict()
    sizes["text_config"] |= {
        "hidden_size": WIDTH,
        "intermediate_size": 704,
        "num_hidden_layers": 6,
        "head_dim": WIDTH // 4,
        "vocab_size": len(tokenizer),
    }
    sizes["vision_config"] |= {"hidden_size": 192, "num_hidden_layers": 4, "projection_dim": WIDTH}
    sizes["vq_config"] |= {"num_embeddings": 1024, "projection_dim": WIDTH}
    sizes["vq_config"]["image_token_embed_dim"] = WIDTH
    made = type(small.sizes)(**sizes)
    config = replace(small, sizes=made, preprocessing=Preprocessing(SIZE))
    torch.manual_seed(0)
    return JanusModel(Janus(config).eval(), JanusVQ(JanusVQVAE(config.vq)), tokenizer, Kept())


class Sides:
    """The same work done in three ways."""

    def __init__(self, folder: Path) -> None:
        self.ours = middle_model()
        self.ours.save_pretrained(folder)
        self.theirs = JanusForConditionalGeneration.from_pretrained(folder).eval()
        special = self.ours.tokenizer.special
        generation = self.theirs.generation_config
        generation.bos_token_id, generation.eos_token_id = special.bos, special.eos
        generation.pad_token_id = special.pad
        generation.generation_kwargs = {"boi_token_id": special.boi}
        pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        self.picture = Image.fromarray(pixels)
        patches_FW = torch.from_numpy(self.ours.patches([self.picture])[0])
        self.pixels = self.ours.network.pixels(patches_FW)

    def question_row(self, question: str) -> Ids:
        """Ids of a row that asks about the picture, with a placeholder for each feature."""
        tokenizer = self.ours.tokenizer
        places = read_picture(np.zeros((self.ours.config.num_features, 1)), tokenizer)
        return np.concatenate([*(s.ids for s in places), tokenizer.question(question)])

    def captions(self, side: str) -> list[list[int]]:
        """Greedy captions of one picture, which are equal and end at no token."""
        if side == "ours":
            samplings = [TextSampling(1.0, 1, TOKENS)] * CAPTIONS
            said = self.ours.caption(self.ours.see([self.picture]), samplings, [0])[0]
            return [self.ours.tokenizer.encode(text) for text in said]
        row_1T = torch.from_numpy(self.question_row(CAPTION_QUESTION))[None]
        at_once = CAPTIONS if side == "transformers" else 1
        said = []
        for _ in range(CAPTIONS // at_once):
            rows = self.theirs.generate(
                input_ids=row_1T.expand(at_once, -1),
                attention_mask=torch.ones_like(row_1T).expand(at_once, -1),
                pixel_values=self.pixels.expand(at_once, -1, -1, -1),
                max_new_tokens=TOKENS,
                do_sample=False,
            )
            said += [self.ours.tokenizer.decode(r[row_1T.shape[1] :].tolist()) for r in rows]
        return [self.ours.tokenizer.encode(text) for text in said]

    @torch.inference_mode()
    def answers(self, side: str) -> list[list[float]]:
        """Probabilities of choices of questions about one picture."""
        if side == "ours":
            [found] = self.ours.answer(self.ours.see([self.picture]), [QUESTIONS])
            return [probabilities.tolist() for probabilities in found]
        answered = []
        for question, choices in QUESTIONS:
            start = self.question_row(question)
            said = [self.ours.tokenizer.answer(choice) for choice in choices]
            # transformers takes the choices of a question as a batch, the scripts one row each.
            batches = [said] if side == "transformers" else [[ids] for ids in said]
            sums = torch.cat([self._sums(start, batch) for batch in batches])
            answered.append(sums.double().softmax(0).tolist())
        return answered

    def _sums(self, start: Ids, said: Sequence[Ids]) -> Tensor:
        longest = max(map(len, said))
        pad = self.ours.tokenizer.special.pad
        padded = [np.pad(ids, (0, longest - len(ids)), constant_values=pad) for ids in said]
        rows = torch.from_numpy(np.stack([np.concatenate((start, ids)) for ids in padded]))
        logits = self.theirs(
            input_ids=rows,
            attention_mask=torch.ones_like(rows),
            pixel_values=self.pixels.expand(len(rows), -1, -1, -1),
        ).logits.log_softmax(-1)
        return torch.stack(
            [
                row[len(start) - 1 : len(start) - 1 + len(ids)]
                .gather(-1, torch.from_numpy(ids)[:, None])
                .sum()
                for row, ids in zip(logits, said, strict=True)
            ]
        )

    @torch.inference_mode()
    def images(self, side: str) -> list[list[int]]:
        """Greedy pictures of one prompt with guidance 4."""
        if side == "ours":
            how = Autoregressive(4.0, 1.0, top_k=1)
            codes: list[list[int]] = self.ours.generate([PROMPT], PICTURES, how, [0])[0].tolist()
            return codes
        prompt = torch.from_numpy(self.ours.tokenizer.prompt(PROMPT))[None]
        num_codes = self.ours.config.num_codes
        if side == "transformers":
            found: list[list[int]] = self.theirs.generate(
                prompt.repeat(PICTURES, 1),
                attention_mask=torch.ones_like(prompt).repeat(PICTURES, 1),
                generation_mode="image",
                guidance_scale=5.0,
                do_sample=False,
                max_length=prompt.shape[1] + num_codes,
            ).tolist()
            return found
        rows = prompt.repeat(2 * PICTURES, 1)
        rows[1::2, 1:-1] = self.ours.tokenizer.special.pad
        hidden, cache, drawn = self.theirs.get_input_embeddings()(rows), DynamicCache(), []
        for _ in range(num_codes):
            state = self.theirs.model.language_model(
                inputs_embeds=hidden, past_key_values=cache, use_cache=True
            ).last_hidden_state[:, -1]
            logits = self.theirs.model.generation_head(state)
            guided = logits[1::2] + 5.0 * (logits[0::2] - logits[1::2])
            drawn.append(guided.argmax(-1))
            both = drawn[-1].repeat_interleave(2)
            hidden = self.theirs.prepare_embeddings_for_image_generation(both)[:, None]
        return torch.stack(drawn, dim=1).tolist()


@dataclass(frozen=True)
class Comparison:
    """Seconds of each side, and whether all gave the same."""

    title: str
    seconds: dict[str, list[float]]
    equal: bool

    def row(self) -> str:
        """A line of the table."""
        middle = {side: statistics.median(values) for side, values in self.seconds.items()}
        cells = [
            f"{middle[side]:.3g} [{min(values):.3g}, {max(values):.3g}]"
            for side, values in self.seconds.items()
        ]
        ratios = [f"**{middle[side] / middle['ours']:.1f} x**" for side in SIDES[1:]]
        return f"| {' | '.join([self.title, *cells, *ratios, 'yes' if self.equal else 'NO'])} |"


def compare(title: str, work: Callable[[str], Any], runs: int) -> Comparison:
    """All sides in turns, after one run of each to warm up."""
    results = [work(side) for side in SIDES]
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(runs):
        for side in SIDES:
            seconds[side].append(seconds_of(lambda side=side: work(side), "cpu"))  # type: ignore[misc]
    equal = all(_alike(results[0], other) for other in results[1:])
    return Comparison(title, seconds, equal)


def _alike(one: Any, other: Any) -> bool:
    mine, theirs = (np.concatenate([np.ravel(p) for p in side]) for side in (one, other))
    return mine.shape == theirs.shape and bool(np.abs(mine - theirs).max() < 1e-4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; 1 if the sides disagree."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch has them")
    parser.add_argument("--to", type=Path, default=Path("bench-results"))
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.set_verbosity_error()  # one line for each call otherwise
    with TemporaryDirectory() as folder:
        sides = Sides(Path(folder))
        compared = [
            compare(f"{CAPTIONS} captions of a picture", sides.captions, options.runs),
            compare("answers about a picture", sides.answers, options.runs),
            compare(f"{PICTURES} pictures of a prompt", sides.images, options.runs),
        ]
    heads = ["path", *(f"{side}, s" for side in SIDES), *(f"to {s}" for s in SIDES[1:]), "equal"]
    table = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *(c.row() for c in compared)]
    text = "\n".join([f"{hardware('cpu')}; medians of {options.runs}", "", *table]) + "\n"
    options.to.mkdir(parents=True, exist_ok=True)
    (options.to / "peers.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if all(one.equal for one in compared) else 1


if __name__ == "__main__":
    sys.exit(main())
