"""Does what a stage does with a mid-size model; prints bytes planned and bytes that it took.

What stays when all of it is gone was taken by libraries: kernels made for the sizes at hand, code
that was never run before. A plan does not count it.
"""

import copy
import gc
import json
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bench.synthetic import FULL, Data, make_model
from bench.training import Lora, PairStep
from models import memory_plan as plans
from models.adapters import Adapters
from models.base import MODALITIES, ImageSampling, TextSampling
from models.lanes import at_once
from models.magvitv2 import MAGVITv2Config, StackConfig
from models.memory_plan import Need, Shape, Step
from models.optimizer import take_gradients
from models.pair_trainer import added
from models.sharding import recompute
from models.showo.model import ShowoModel

HALF = StackConfig(32, (1, 1, 2, 2, 4), (1, 1, 1, 1, 1))
SIZE = replace(
    FULL,
    network=replace(
        FULL.network,
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=6,
        llm_vocab_size=12000,
        codebook_size=1024,
        max_text_len=64,
        bos_token_id=0,
        eos_token_id=0,
    ),
    vq=MAGVITv2Config(HALF, HALF, 10),
    pairs=8,
    questions=plans.QUESTIONS,
)
SAMPLES, STEPS, NEW_TOKENS = 4, 2, 40
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def train(model: ShowoModel, shape: Shape, precision: str, options: set[str]) -> Need:
    """Two steps of training, after which all moments are there."""
    if "lora" in options:
        Adapters(model, Lora(8), 0)  # type: ignore[arg-type]
    if "recompute" in options:
        recompute(model.blocks)
    lanes = 2 if "halves" in options else 1
    step = _halves(model, precision) if lanes == 2 else _whole(model, precision)
    step()
    step()
    return plans.training(
        shape,
        Step(
            pairs=SIZE.pairs,
            masks=1,
            caption_tokens=61,
            prompt_tokens=43,
            precision=precision,
            rank=8 if "lora" in options else None,
            recompute="recompute" in options,
            alone=True,
            optimizers=1,
            accumulates=True,
            lanes=lanes,
        ),
    )


def _whole(model: ShowoModel, precision: str) -> Callable[[], None]:
    return PairStep(model, SIZE, "cpu", SIZE.pairs, precision)


def _halves(model: ShowoModel, precision: str) -> Callable[[], None]:
    """As PairTrainer does it: the same weights twice, each with its gradients."""
    torch.set_num_threads(2)
    half, other = replace(SIZE, pairs=SIZE.pairs // 2), copy.deepcopy(model)
    for weight, shared in zip(
        other.pair_module.parameters(), model.pair_module.parameters(), strict=True
    ):
        weight.data = shared.data
    lanes = [PairStep(one, half, "cpu", half.pairs, precision) for one in (model, other)]

    def step() -> None:
        at_once(PairStep.add_gradients, lanes)
        first, second = (take_gradients(lane.weights) for lane in lanes)
        lanes[0].move([added(*both) for both in zip(first, second, strict=True)])

    return step


def sample_or_score(kind: str, model: ShowoModel, shape: Shape, precision: str) -> Need:
    """One batch of a stage."""
    data = Data(model.config)
    if kind == "captions":
        images = model.decode_images(data.codes(1)) * 8
        samplings = [TextSampling(1.0, None, NEW_TOKENS)] * SAMPLES
        model.caption(model.encode_images(images), samplings, list(range(8)))
        return plans.captions(shape, precision, SAMPLES, NEW_TOKENS, 8)
    if kind == "images":
        sampling = ImageSampling(STEPS, 1.0)
        codes_BMN = model.generate(data.texts(2, 60), SAMPLES, sampling, [0, 1])
        model.decode_images(codes_BMN.reshape(-1, codes_BMN.shape[-1]))
        return plans.images(shape, precision, SAMPLES, STEPS, True, 2)
    if kind == "answers":
        torch.set_num_threads(2)
        model.answer(data.codes(48), data.questions(48, SIZE))
        return plans.answers(shape, precision, 48, on_cpu=True)
    batch = data.pairs(16)
    model.encode_images(model.decode_images(data.codes(1)) * 16)
    with torch.inference_mode():
        for modality in MODALITIES:
            model.pair_logps(batch, modality)
    return plans.reference(shape, 1, 16)


def main(kind: str, precision: str, *options: str) -> None:
    """Run one kind of stage."""
    torch.set_num_threads(1)
    before = _resident_bytes()
    need = _do(kind, precision, set(options))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    gc.collect()
    stays = _resident_bytes()
    parts = {name: round(size / 2**20) for name, size in need.parts.items()}
    found = {"planned": need.total, "taken": peak - stays, "libraries": stays - before}
    print(json.dumps(found | {"parts": parts}))


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _do(kind: str, precision: str, options: set[str]) -> Need:
    dtype = torch.float32 if kind == "train" else TYPES[precision]
    model = make_model(SIZE, "cpu", dtype)
    with TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model.save_pretrained(folder)
        shape = Shape.from_folder(Path(folder))
    if kind == "train":
        return train(model, shape, precision, options)
    return sample_or_score(kind, model, shape, precision)


if __name__ == "__main__":
    main(*sys.argv[1:])
