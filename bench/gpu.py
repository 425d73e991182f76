"""`python -m bench.gpu`: how fast the full-size Show-o trains, captions, answers and draws here.

Janus-Pro-1B draws, too: as on a GPU (steps of one shape, compiled), in these shapes without
compiling, and with keys that grow.

Weights are random and nothing is read or downloaded; torch and transformers are enough, with peft
for LoRA. A part that fails says why, and the rest goes on. With --json what is known is written
after every part, as JSON and beside it as Markdown.
"""

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.synthetic import PROMPT_WORDS, SIZES, Data, Size, make_janus, make_model
from bench.training import PairStep
from core.runtime import peak_memory_bytes
from models.families.janus.sampler import FixedSteps, code_step, generate_images
from models.nn.packing import num_tokens
from models.protocol import Autoregressive, MaskPredict, Seen, TextSampling
from models.samplers.noise import RecordNoise

GUIDANCE = 5.0
HEAD = "| part | median | fastest to slowest | speed | MFU | peak memory |"

Prepared = tuple[Callable[[], object], Mapping[str, float]]
"""A call to be timed, and how many units of what it does."""


@dataclass(frozen=True)
class Lora:
    """Adapters as a config describes them."""

    rank: int = 16
    alpha: float = 32.0


@dataclass(frozen=True)
class Row:
    """Seconds of a part's runs, or why it could not be measured.

    `flops` are those of the products that torch counts in a run, padding and hidden keys among
    them: a multiplication and an addition are two.
    """

    part: str
    seconds: Sequence[float] = ()
    units: Mapping[str, float] = field(default_factory=dict)
    flops: int = 0
    peak_bytes: int = 0
    error: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def rate(size: Size, device: str) -> Prepared:
    """A product of square bfloat16 matrices, which MFU is a share of."""
    first, second = (
        torch.randn(size.matmul, size.matmul, device=device, dtype=torch.bfloat16) for _ in range(2)
    )
    return lambda: first @ second, {}


def train(size: Size, device: str, *, lora: bool = False) -> Prepared:
    """A Pair-DPO step: both modalities of all pairs at once, and AdamW."""
    model = make_model(size, device, torch.float32)
    if lora:
        from models.adapters import Adapters

        Adapters(model, Lora(), 0)  # type: ignore[arg-type]
    step = PairStep(model, size, device)
    return step, {"steps": 1, "pairs": size.pairs, "tokens": step.num_tokens}


def captions(size: Size, device: str) -> Prepared:
    """Captions of images by the published settings: greedy, then top-k at three temperatures."""
    model = make_model(size, device, torch.bfloat16)
    settings = [(1.0, 1), *product((0.1, 0.7, 2.0), (2, 3, 4))]
    samplings = [
        TextSampling(temperature, top_k, length)
        for (temperature, top_k), length in zip(settings, size.captions, strict=False)
    ]
    codes_BN, seeds = Data(model.config).codes(size.records), list(range(size.records))
    tokens = sum(sampling.max_new_tokens for sampling in samplings) * size.records
    units = {"captions": len(samplings) * size.records, "tokens": tokens}
    return lambda: model.caption(Seen(codes_BN), samplings, seeds), units


def answers(size: Size, device: str) -> Prepared:
    """Answers to the questions about a prompt's images by likelihood, as self-VQA asks them."""
    model = make_model(size, device, torch.bfloat16)
    data = Data(model.config)
    codes_BN, questions = data.codes(size.images), data.questions(size.images, size)
    trees = model.reader.question_trees(Seen(codes_BN), questions)
    units = {"images": size.images, "tokens": sum(map(num_tokens, trees))}
    return lambda: model.answer(Seen(codes_BN), questions), units


def images(size: Size, device: str) -> Prepared:
    """All images of a prompt with guidance, down to pixels."""
    model = make_model(size, device, torch.bfloat16)
    prompts = Data(model.config).texts(1, PROMPT_WORDS)
    sampling = MaskPredict(size.steps, GUIDANCE)

    def call() -> None:
        codes_BMN = model.generate(prompts, size.images, sampling, [0])
        model.decode(codes_BMN.reshape(-1, codes_BMN.shape[-1]))

    return call, {"images": size.images}


def codes(size: Size, device: str, steps: Callable[[], FixedSteps] | None) -> Prepared:
    """Codes of all images of a prompt, drawn by Janus with guidance: 576 steps at full size."""
    network, tokenizer = make_janus(size, device, torch.bfloat16)
    prompt, how = tokenizer.prompt(" ".join(["w"] * PROMPT_WORDS)), Autoregressive(4.0, 1.0)
    num_codes, fixed = network.config.num_codes, steps and steps()

    def call() -> None:
        noise = RecordNoise([0], size.images, num_codes, 1, network.device)
        generate_images(network, [prompt], size.images, how, noise, tokenizer, fixed)

    if fixed:
        call()  # compiled here, since nothing is where products are counted
    return call, {"images": size.images, "codes": size.images * num_codes}


def compiled(device: str) -> FixedSteps:
    """As images are drawn on a GPU; on a CPU, where compiling takes long, in the same shapes."""
    return FixedSteps(code_step) if device == "cpu" else FixedSteps.compiled()


PARTS: Mapping[str, Callable[[Size, str], Prepared]] = {
    "rate": rate,
    "train": train,
    "lora": lambda size, device: train(size, device, lora=True),
    "captions": captions,
    "answers": answers,
    "images": images,
    "codes": lambda size, device: codes(size, device, lambda: compiled(device)),
    "codes-one-shape": lambda size, device: codes(size, device, lambda: FixedSteps(code_step)),
    "codes-growing": lambda size, device: codes(size, device, None),
}


def measure(part: str, size: Size, device: str, runs: int) -> Row:
    """Time a part after one run to warm up; a part that fails gives the reason."""
    on_gpu = device != "cpu"
    try:
        call, units = PARTS[part](size, device)
        # On a CPU torch counts of attention what this backend multiplies, and nothing of others.
        backend = nullcontext() if on_gpu else sdpa_kernel(SDPBackend.MATH)
        with backend, FlopCounterMode(display=False) as counter:
            call()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = [seconds_of(call, device) for _ in range(runs)]
        peak = torch.cuda.max_memory_allocated() if on_gpu else peak_memory_bytes()
        return Row(part, seconds, units, counter.get_total_flops(), peak)
    except Exception as error:  # of whatever kind: the other parts are wanted all the same
        message = str(error).strip().partition("\n")[0]
        return Row(part, error=f"{type(error).__name__}: {message}"[:300])
    finally:
        if on_gpu:
            torch.cuda.empty_cache()


def seconds_of(call: Callable[[], object], device: str) -> float:
    """Seconds of a call, until the device has done all of it."""
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def hardware(device: str) -> str:
    """What is measured on, in a line."""
    if device == "cpu":
        threads = torch.get_num_threads()
        return f"CPU {platform.machine()}, {threads} threads, torch {torch.__version__}"
    about = torch.cuda.get_device_properties(device)
    memory = f"{about.total_memory / 2**30:.0f} GiB"
    return f"{about.name}, {memory}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def share_of_peak(row: Row, rows: Sequence[Row]) -> float | None:
    """FLOP/s of a part against the measured rate of products; None where unknown."""
    peaks = [one.flops / one.median for one in rows if one.part == "rate" and one.seconds]
    return row.flops / row.median / peaks[0] if peaks and row.seconds and row.flops else None


def as_json(rows: Sequence[Row], about: str, command: str) -> dict[str, Any]:
    """Everything, for programs."""
    measured = [
        asdict(row)
        | ({"median": row.median, "mfu": share_of_peak(row, rows)} if row.seconds else {})
        for row in rows
    ]
    return {"hardware": about, "command": command, "rows": measured}


def as_markdown(rows: Sequence[Row], about: str, command: str) -> str:
    """Everything, for people."""
    lines = [f"{about}. `{command}`", "", HEAD, "|---" * (HEAD.count("|") - 1) + "|"]
    for row in rows:
        if not row.seconds:
            lines.append(f"| {row.part} | {row.error} | | | | |")
            continue
        speeds = [f"{count / row.median:,.4g} {unit}/s" for unit, count in row.units.items()]
        share = share_of_peak(row, rows)
        lines.append(
            f"| {row.part} | {1000 * row.median:,.4g} ms "
            f"| {1000 * min(row.seconds):,.4g} to {1000 * max(row.seconds):,.4g} "
            f"| {', '.join(speeds) or f'{row.flops / row.median / 1e12:,.4g} TFLOP/s'} "
            f"| {'' if share is None else f'{share:.1%}'} | {row.peak_bytes / 2**30:.1f} GiB |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then print the table."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=Path, help="file to write, beside it the same as .md")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(given)
    about = hardware(options.device), shlex.join(["python", "-m", "bench.gpu", *given])
    rows: list[Row] = []
    for part in options.parts:
        rows.append(measure(part, SIZES[options.size], options.device, options.runs))
        print(f"{part}: {rows[-1].error or f'{rows[-1].median:.4g} s'}", file=sys.stderr)
        if options.json:
            document = json.dumps(as_json(rows, *about), indent=1) + "\n"
            options.json.write_text(document, encoding="utf-8")
            text = as_markdown(rows, *about)
            options.json.with_suffix(".md").write_text(text, encoding="utf-8")
    print(as_markdown(rows, *about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
