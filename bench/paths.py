"""Hot paths, each in our way and in the straightforward one, which must give the same.

The sides of a path take the same inputs. What is compared is stated with each.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from bench import plain
from bench.synthetic import FULL, SMALL, Data, Size, make_model
from bench.training import PairStep, PublishedTraining
from models.families.showo.likelihood import image_root, instruction
from models.families.showo.model import ShowoModel
from models.families.showo.prompts import CAPTION_QUESTION, mmu_instruction, t2i_prompt
from models.families.showo.sampler import ImageBlocks, generate_images
from models.nn.packing import Segment
from models.protocol import MODALITIES, MaskPredict, Seen, TextSampling
from models.samplers.noise import RecordNoise
from models.samplers.prefixes import generate_replies, generate_text

Floats = npt.NDArray[np.float64]
Call = Callable[[], Floats]
Sides = tuple[Call, Call]  # ours, and the straightforward one

NO_STOP = -1  # an id that no token has, so that lengths are fixed
SETTINGS = [(1.0, 1), *((t, k) for k in (2, 3, 4) for t in (0.1, 0.7, 2.0))]
QUESTIONS, REPLY_TOKENS = 5, 8
GUIDANCE = 5.0
SEED = 0


@dataclass(frozen=True)
class Scale:
    """How much each path does; `model` and the counts are those of the published timings."""

    model: Size
    caption_tokens: int = 32
    images: int = 16
    image_steps: int = 2


MID = Scale(
    replace(
        FULL,
        network=replace(
            FULL.network,
            hidden_size=512,
            intermediate_size=2048,
            num_hidden_layers=8,
            num_attention_heads=8,
        ),
        vq=SMALL.vq,
    )
)
TINY = Scale(SMALL, caption_tokens=4, images=2, image_steps=2)
SCALES = {"mid": MID, "tiny": TINY}


@dataclass(frozen=True)
class HotPath:
    """`build` gives the calls of both sides; `agree` is the least share of results that are equal.

    Sums of floating-point numbers are taken in another order, so a draw that falls on the edge of
    two categories may go either way, and everything drawn after it. Where that happens, `check`
    gives calls with numbers before the draw, and they are compared.
    """

    title: str
    build: Callable[[Scale], Sides]
    agree: float = 1.0
    tolerance: float = 0.0
    check: Callable[[Scale], Sides] | None = None


def _captions(scale: Scale) -> Sides:
    model, data = _made(scale)
    codes_N = data.codes(1)[0]
    samplings = [TextSampling(t, k, scale.caption_tokens) for t, k in SETTINGS]

    def ours() -> Floats:
        special = model.tokenizer.special
        tree = [
            image_root(codes_N + model.config.image_offset, special),
            Segment(mmu_instruction(model.tokenizer, CAPTION_QUESTION), parent=0),
        ]
        noise = RecordNoise([SEED], len(samplings), scale.caption_tokens, 1, model.device)
        tokens = generate_text(model.network, [tree], samplings, NO_STOP, noise, special.pad)
        return np.array(tokens[0], dtype=np.float64)

    return ours, lambda: np.array(plain.captions(model, codes_N, samplings, SEED), np.float64)


def _images(scale: Scale) -> Sides:
    model, data = _made(scale)
    prompt = _prompt(model, data)
    sampling = MaskPredict(scale.image_steps, GUIDANCE)

    def ours() -> Floats:
        config, special = model.config, model.tokenizer.special
        ids = t2i_prompt(model.tokenizer.encode(prompt), special, config.max_text_len)
        shape = (scale.images, 2 * sampling.steps, config.num_vq_tokens)
        noise = RecordNoise([SEED], *shape, model.device)
        codes = generate_images(model.network, [ids], scale.images, sampling, noise, special)
        return codes.numpy().astype(np.float64)

    def straight() -> Floats:
        codes_RN = plain.images(model, prompt, scale.images, sampling, SEED)
        return codes_RN.numpy().astype(np.float64)

    return ours, straight


def _image_logits(scale: Scale) -> Sides:
    """Logits of a first step, and of a second one in which half of the codes are known."""
    model, data = _made(scale)
    prompt = _prompt(model, data)
    config, special = model.config, model.tokenizer.special
    codes_RN = torch.from_numpy(data.codes(2))
    half_RN = torch.rand(codes_RN.shape, generator=torch.Generator().manual_seed(SEED)) < 0.5

    @torch.inference_mode()
    def ours() -> Floats:
        ids = t2i_prompt(model.tokenizer.encode(prompt), special, config.max_text_len)
        blocks = ImageBlocks(model.network, [ids], len(codes_RN), GUIDANCE, special)
        both = (blocks.first_logits(), blocks.logits(codes_RN, half_RN))
        return torch.stack(both).double().numpy()

    def straight() -> Floats:
        both = [
            plain.image_logits(model, prompt, codes_RN, unknown_RN, GUIDANCE)
            for unknown_RN in (torch.ones_like(half_RN), half_RN)
        ]
        return torch.stack(both).double().numpy()

    return ours, straight


def _prompt(model: ShowoModel, data: Data) -> str:
    return data.texts(1, min(40, model.config.max_text_len // 2))[0]


def _replies(scale: Scale) -> Sides:
    model, data = _made(scale)
    codes_N = data.codes(1)[0]
    asked = data.questions(1, replace(scale.model, questions=QUESTIONS))[0]

    def ours() -> Floats:
        special = model.tokenizer.special
        root = image_root(codes_N + model.config.image_offset, special)
        turns = [instruction(model.tokenizer, model.config, *question) for question in asked]
        greedy = TextSampling(1.0, 1, REPLY_TOKENS)
        noise = RecordNoise([SEED] * len(asked), 1, REPLY_TOKENS, 1, model.device)
        found = generate_replies(
            model.network, [[root]], [turns], greedy, NO_STOP, noise, special.pad
        )
        return np.array(found[0], dtype=np.float64)

    return ours, lambda: np.array(plain.replies(model, codes_N, asked, REPLY_TOKENS), np.float64)


def _answers(scale: Scale) -> Sides:
    """What self-VQA does by default: all choices of all questions in one forward pass."""
    model, data = _made(scale)
    codes_BN = Seen(data.codes(1))
    asked = data.questions(1, replace(scale.model, questions=QUESTIONS))
    return lambda: np.concatenate(model.answer(codes_BN, asked)[0]), _replies(scale)[1]


def _pair_step(scale: Scale) -> Sides:
    """Compared by the first step, after which the sides have other optimizers."""
    (model, data), (other, _) = _made(scale), _made(scale)
    pairs, settings = data.pairs(1), PublishedTraining()
    straight = plain.PairStep(other, settings.objective.caption.beta, settings.learning_rate)
    with torch.inference_mode():
        logps = [model.pair_logps(pairs, modality) for modality in MODALITIES]
    sums = [(pair.chosen_logps_B, pair.rejected_logps_B) for pair in logps]
    first = np.array([float(logp_B) for both in sums for logp_B in both])
    first_there = np.array(straight(pairs))
    # Of a generator of its own, so these are the same pairs.
    step = PairStep(model, replace(scale.model, pairs=1), "cpu", "float32")

    def timed(call: Callable[[], object], found: Floats) -> Call:
        def run() -> Floats:
            call()
            return found

        return run

    return timed(step, first), timed(partial(straight, pairs), first_there)


def _made(scale: Scale) -> tuple[ShowoModel, Data]:
    # The image tokenizer takes no part, but a model's must have its number of codes.
    bits = scale.model.network.codebook_size.bit_length() - 1
    size = replace(scale.model, vq=replace(SMALL.vq, codebook_dim=bits))
    model = make_model(size, "cpu", torch.float32)
    return model, Data(model.config)


PATHS = {
    "captions": HotPath("10 captions of an image", _captions, agree=0.95),
    "images": HotPath("16 images with guidance", _images, tolerance=1e-4, check=_image_logits),
    "replies": HotPath("5 questions about an image, decoded", _replies),
    "answers": HotPath("5 questions about an image, by likelihood", _answers, agree=0.0),
    "pair-step": HotPath("a Pair-DPO step", _pair_step, tolerance=1e-3),
}


def agreement(path: HotPath, ours: Floats, straight: Floats) -> float:
    """Share of numbers that the sides have in common, within the path's tolerance."""
    if ours.shape != straight.shape:
        return 0.0
    close = np.abs(ours - straight) <= path.tolerance * np.maximum(1.0, np.abs(straight))
    return float(close.mean())
