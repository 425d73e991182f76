"""What is measured, a row at a time. A row that fails says why, and the others go on."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import cast

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.clock import Clock, Times
from bench.flops import Work, forward_flops, image_work, packed_work, text_work
from bench.graphs import GraphedNetwork
from bench.synthetic import PROMPT_WORDS, Data, Size, make_model
from bench.training import Lora, PairStep, PublishedTraining
from models.families.showo.network import Showo
from models.families.showo.prompts import CAPTION_QUESTION, mmu_instruction, t2i_prompt
from models.families.showo.sampler import generate_images
from models.families.showo.trees import question_trees
from models.nn.packing import num_tokens, pack_trees
from models.protocol import MODALITIES, MaskPredict, Seen, TextSampling
from models.samplers.noise import RecordNoise
from training.sharding import recompute

GUIDANCE = 5.0
LORA = Lora()
SHORT_STEPS = 10  # of image sampling where variants are compared
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Prepared:
    """A call to be timed, how many units of what it does, and its useful arithmetic."""

    call: Callable[[], object]
    units: Mapping[str, float] = field(default_factory=dict)
    flops: int = 0


@dataclass(frozen=True)
class Row:
    """What a call took, or why it could not be measured."""

    part: str
    variant: str
    times: Times | None = None
    units: Mapping[str, float] = field(default_factory=dict)
    flops: int = 0
    error: str = ""


class Bench:
    """Runs parts within a time, most important ones first."""

    def __init__(self, size: Size, clock: Clock, minutes: float) -> None:
        self.size, self.clock, self.rows = size, clock, list[Row]()
        self._deadline = time.monotonic() + 60 * minutes
        self._device = clock.device

    def run(self, parts: list[str]) -> Iterator[Row]:
        """The rows of the chosen parts, each as soon as it is known."""
        for part in parts:
            for row in PARTS[part](self):
                print(f"{row.part}, {row.variant}: {row.error or row.times}", file=sys.stderr)
                self.rows.append(row)
                yield row

    def _measure(
        self,
        part: str,
        variant: str,
        prepare: Callable[[], Prepared],
        *,
        warm_up: int = 1,
        runs: int = 3,
    ) -> Row:
        def row() -> Row:
            made = prepare()
            times = self.clock.time(made.call, warm_up=warm_up, runs=runs)
            return Row(part, variant, times, made.units, made.flops)

        if time.monotonic() > self._deadline:
            return Row(part, variant, error="left out: no time left")
        try:
            return row()
        except Exception as error:  # of whatever kind: the other rows are wanted all the same
            message = str(error).strip().partition("\n")[0]
            return Row(part, variant, error=f"{type(error).__name__}: {message}"[:300])
        finally:
            self.clock.release()

    # Matrix products: what shares of peak are shares of.

    def rate(self) -> Iterator[Row]:
        """bfloat16 products of random square matrices."""
        for width in self.size.matmuls:
            yield self._measure(
                "rate", f"{width} x {width}", partial(self._product, width), warm_up=5, runs=20
            )

    def _product(self, width: int) -> Prepared:
        first, second = (
            torch.randn(width, width, device=self._device, dtype=torch.bfloat16) for _ in range(2)
        )
        return Prepared(lambda: first @ second, flops=2 * width**3)

    # Training.

    def train(self) -> Iterator[Row]:
        """A step of full fine-tuning."""
        yield self._train("full fine-tuning", self.size.pairs)

    def lora(self) -> Iterator[Row]:
        """A step of LoRA."""
        yield self._train(f"LoRA, rank {LORA.rank}", self.size.pairs, lora=True)

    def train_variants(self) -> Iterator[Row]:
        """Recomputation, pairs at once, image tokens."""
        pairs = self.size.pairs
        yield self._train("recomputation", pairs, recomputed=True)
        for at_once in self.size.at_once:
            yield self._train(f"{at_once} of {max(pairs, at_once)} pairs at once", at_once)
        yield self._train(f"{self.size.long_image} image tokens", pairs, long=True)
        yield self._train("LoRA and recomputation", pairs, lora=True, recomputed=True)

    def train_attention(self) -> Iterator[Row]:
        """Attention backends in training."""
        for name, backend in self._backends():
            with sdpa_kernel(backend):
                row = self._train(f"attention by {name}", self.size.pairs)
            yield row

    def train_compiled(self) -> Iterator[Row]:
        """Blocks through torch.compile."""
        yield self._train("compiled blocks", self.size.pairs, compiled=True)

    def _train(
        self,
        variant: str,
        at_once: int,
        *,
        lora: bool = False,
        recomputed: bool = False,
        compiled: bool = False,
        long: bool = False,
    ) -> Row:
        def prepare() -> Prepared:
            size = replace(self.size, pairs=max(self.size.pairs, at_once))
            model = make_model(size, self._device, torch.float32, long=long)
            if lora:
                # Here, since peft may not be there.
                from models.adapters import Adapters

                Adapters(model, LORA, 0)  # type: ignore[arg-type]
            if recomputed:
                recompute(model.blocks)
            if compiled:
                compile_blocks(model.blocks)
            step = PairStep(model, size, self._device, at_once)
            units = {"tokens": step.work().tokens, "pairs": size.pairs, "steps": 1}
            return Prepared(step, units, step.flops(LORA if lora else None))

        return self._measure("train", variant, prepare, warm_up=2, runs=5)

    def optimizer(self) -> Iterator[Row]:
        """One AdamW over all weights, by loops over lists of tensors and in one kernel."""
        for name, fused in (("lists of tensors", False), ("fused", True)):
            yield self._measure("AdamW", name, partial(self._adamw, fused), warm_up=2)

    def _adamw(self, fused: bool) -> Prepared:
        from training.optim import decay_groups

        network = make_model(self.size, self._device, torch.float32).network
        groups = decay_groups(network, PublishedTraining().weight_decay)
        adamw = torch.optim.AdamW(groups, lr=2e-5, fused=fused, foreach=not fused)
        for weight in network.parameters():
            weight.grad = torch.randn_like(weight)
        return Prepared(adamw.step)

    # Reference log-probabilities.

    def reference(self) -> Iterator[Row]:
        """Both modalities of pairs, without gradients."""
        yield self._measure("reference", "bfloat16 weights", self._reference)

    def _reference(self) -> Prepared:
        model = make_model(self.size, self._device, torch.bfloat16)
        batch = Data(model.config).pairs(4 * self.size.pairs)
        pad_id, work = model.tokenizer.special.pad, Work()
        for modality in MODALITIES:
            packed = model.pack_pairs(batch, modality).batch.to("cpu")
            work += packed_work(model.config, packed, pad_id)

        def call() -> None:
            with torch.inference_mode():
                for modality in MODALITIES:
                    model.pair_logps(batch, modality)

        units = {"tokens": work.tokens, "pairs": len(batch.prompts)}
        return Prepared(call, units, forward_flops(model.config, work))

    # Images.

    def images(self) -> Iterator[Row]:
        """All images of a prompt, by all steps."""
        yield self._images(f"{self.size.images} images, {self.size.steps} steps")

    def image_codes(self) -> Iterator[Row]:
        """Drawn to pixels and back, through PIL images."""
        yield self._measure("images", "decode codes", lambda: self._codec(encode=False))
        yield self._measure("images", "encode pixels", lambda: self._codec(encode=True))

    def long_images(self) -> Iterator[Row]:
        """The second resolution, by some of the steps."""
        yield self._images(f"{self.size.long_image} tokens", long=True, short=True)

    def image_variants(self) -> Iterator[Row]:
        """Some of the steps, plain, replayed, and with more prompts at once."""
        yield self._images("plain", short=True)
        yield self._images("CUDA graph", short=True, graphed=True)
        for records in self.size.at_once:
            yield self._images(f"{records * self.size.images} at once", records, short=True)

    def image_attention(self) -> Iterator[Row]:
        """Attention backends in image sampling."""
        for name, backend in self._backends():
            with sdpa_kernel(backend):
                row = self._images(f"attention by {name}", short=True)
            yield row

    def image_compiled(self) -> Iterator[Row]:
        """Blocks through torch.compile, in image sampling."""
        yield self._images("compiled blocks", short=True, compiled=True)

    def _images(
        self,
        variant: str,
        records: int = 1,
        *,
        long: bool = False,
        short: bool = False,
        graphed: bool = False,
        compiled: bool = False,
    ) -> Row:
        steps = min(self.size.steps, SHORT_STEPS) if short else self.size.steps
        num_images, sampling = self.size.images, MaskPredict(steps, GUIDANCE)

        def prepare() -> Prepared:
            model = make_model(self.size, self._device, torch.bfloat16, long=long)
            if compiled:
                compile_blocks(model.blocks)
            config, special = model.config, model.tokenizer.special
            network = cast("Showo", GraphedNetwork(model.network)) if graphed else model.network
            prompts = [
                t2i_prompt(model.tokenizer.encode(text), special, config.max_text_len)
                for text in Data(config).texts(records, PROMPT_WORDS)
            ]

            def call() -> None:
                noise = RecordNoise(
                    range(records), num_images, 2 * steps, config.num_vq_tokens, model.device
                )
                generate_images(network, prompts, num_images, sampling, noise, special).cpu()

            lengths = [*map(len, prompts), len(t2i_prompt([], special, config.max_text_len))]
            work = image_work(config, lengths, num_images, steps, guided=True)
            units = {"images": num_images * records, "steps": steps}
            return Prepared(call, units, forward_flops(config, work))

        part = f"images, {steps} steps" if short else "images"
        return self._measure(part, variant, prepare, runs=3)

    def _codec(self, encode: bool) -> Prepared:
        model = make_model(self.size, self._device, torch.bfloat16)
        codes_BN = Data(model.config).codes(self.size.images)
        images = model.decode(codes_BN)
        units = {"images": len(images)}
        if encode:
            return Prepared(lambda: model.encode(images), units)
        return Prepared(lambda: model.decode(codes_BN), units)

    # Texts.

    def texts(self) -> Iterator[Row]:
        """Captions of images, and answers to their questions by likelihood."""
        yield self._measure("captions", f"{self.size.records} images at once", self._captions)
        yield self._measure("answers", f"{self.size.images} images at once", self._answers)

    def _captions(self) -> Prepared:
        model = make_model(self.size, self._device, torch.bfloat16)
        # The published settings: greedy, then top-k of 2, 3, 4 at three temperatures.
        settings = [(1.0, 1), *product((0.1, 0.7, 2.0), (2, 3, 4))]
        samplings = [
            TextSampling(temperature, top_k, length)
            for (temperature, top_k), length in zip(settings, self.size.captions, strict=False)
        ]
        records = self.size.records
        codes_BN = Data(model.config).codes(records)
        instruction = mmu_instruction(model.tokenizer, CAPTION_QUESTION)
        prefix = model.config.num_vq_tokens + 3 + len(instruction)
        lengths = [sampling.max_new_tokens for sampling in samplings]
        work = text_work(model.config, prefix, lengths) * records
        units = {
            "captions": len(samplings) * records,
            "records": records,
            "tokens": sum(lengths) * records,
        }
        seeds = list(range(records))
        return Prepared(
            lambda: model.caption(Seen(codes_BN), samplings, seeds),
            units,
            forward_flops(model.config, work),
        )

    def _answers(self) -> Prepared:
        model = make_model(self.size, self._device, torch.bfloat16)
        data, images = Data(model.config), self.size.images
        codes_BN, questions = data.codes(images), data.questions(images, self.size)
        trees = question_trees(codes_BN, questions, model.tokenizer, model.config)
        pad_id = model.tokenizer.special.pad
        work = packed_work(model.config, pack_trees(trees, pad_id), pad_id)
        units = {
            "tokens": sum(map(num_tokens, trees)),
            "images": images,
            "records": images / self.size.images,
        }
        return Prepared(
            lambda: model.answer(Seen(codes_BN), questions),
            units,
            forward_flops(model.config, work),
        )

    def _backends(self) -> list[tuple[str, SDPBackend]]:
        only = ("flash", "math") if self._device == "cpu" else tuple(BACKENDS)
        return [(name, BACKENDS[name]) for name in only]


def compile_blocks(blocks: Sequence[nn.Module]) -> None:
    """Compile each block for itself, in which they are all alike."""
    torch._dynamo.reset()
    # Or the number of a block, by which it finds its part of a cache, would make each another one.
    torch._dynamo.config.allow_unspec_int_on_nn_module = True
    for block in blocks:
        block.compile()


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "rate": Bench.rate,
    "train": Bench.train,
    "images": Bench.images,
    "texts": Bench.texts,
    "lora": Bench.lora,
    "codes": Bench.image_codes,
    "reference": Bench.reference,
    "image-variants": Bench.image_variants,
    "train-variants": Bench.train_variants,
    "optimizer": Bench.optimizer,
    "long-images": Bench.long_images,
    "image-attention": Bench.image_attention,
    "train-attention": Bench.train_attention,
    "train-compiled": Bench.train_compiled,
    "image-compiled": Bench.image_compiled,
}
"""In the order of their importance, should time run out."""
