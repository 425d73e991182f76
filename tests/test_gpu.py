"""What needs a GPU: `pytest -m gpu`. Skipped where there is none.

test_pretended_gpu.py runs all of it on a device that is none.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.gpu import main
from bench.synthetic import SMALL, Data, make_janus, make_model
from bench.training import PairStep
from core.store import Store
from models.families.janus.sampler import FixedSteps
from models.families.janus.sampler import generate_images as janus_images
from models.families.showo.model import ShowoModel
from models.families.showo.network import Showo
from models.families.showo.prompts import t2i_prompt
from models.families.showo.sampler import generate_images
from models.protocol import Autoregressive, MaskPredict, Seen, TextSampling
from models.samplers.noise import RecordNoise
from tests.loops import play, quick

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def evaluations(store: Path, **changes: object) -> list[dict[str, float]]:
    """What stage `evaluate` says of the base checkpoint and of that of iteration 1."""
    runner, _ = play(quick(store, **changes))
    refs = [result.ref for name, _, result in runner.done if name == "evaluate"]
    return [Store(str(store)).open(ref).manifest["results"] for ref in refs]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_loop_scores_as_on_a_cpu(tmp_path: Path, precision: str) -> None:
    on_cpu = evaluations(tmp_path / "cpu", model__precision=precision)
    on_gpu = evaluations(
        tmp_path / "gpu", model__precision=precision, runtime__device="cuda", runtime__processes=0
    )
    # Draws are the same, so the base differs by answers on an edge; training adds up roundings.
    for cpu, gpu, noise in zip(on_cpu, on_gpu, (0.03, 0.15), strict=True):
        for name in ("understanding", "generation"):
            assert gpu[name] == pytest.approx(cpu[name], abs=noise), name


def test_the_bench_measures_all_that_every_gpu_can(tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    main(["--size", "small", "--device", "cuda", "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]
    assert not {row["part"]: row["error"] for row in rows if row["error"]}


def draw(network: Showo, model: ShowoModel, steps: int) -> torch.Tensor:
    config, special = model.config, model.tokenizer.special
    prompts = [
        t2i_prompt(model.tokenizer.encode(text), special, config.max_text_len)
        for text in Data(config).texts(2, 5)
    ]
    noise = RecordNoise([1, 2], 3, 2 * steps, config.num_vq_tokens, model.device)
    sampling = MaskPredict(steps, 5.0)
    return generate_images(network, prompts, 3, sampling, noise, special)


def test_compiled_steps_of_janus_draw_the_codes_of_growing_keys() -> None:
    network, tokenizer = make_janus(SMALL, "cuda", torch.float32)
    prompts = [tokenizer.prompt(text) for text in ("a", "a b c")]
    how = Autoregressive(4.0, 1.0, top_k=1)
    steps = FixedSteps.compiled()
    for _ in range(2):
        drawn = [
            janus_images(
                network,
                prompts,
                2,
                how,
                RecordNoise([1, 2], 2, network.config.num_codes, 1, network.device),
                tokenizer,
                given,
            )
            for given in (steps, None)
        ]
        assert torch.equal(*drawn)


def waits(work: Callable[[], object]) -> int:
    """How often the CPU waits for the device."""
    work()  # libraries set themselves up
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


def test_no_step_of_an_image_waits() -> None:
    model = make_model(SMALL, "cuda", torch.float32)
    few, many = (waits(lambda steps=steps: draw(model.network, model, steps)) for steps in (4, 12))
    assert few == many


def test_texts_wait_every_fourth_token() -> None:
    model = make_model(SMALL, "cuda", torch.float32)
    codes_BN = Data(model.config).codes(2)

    def caption(tokens: int) -> int:
        return waits(lambda: model.caption(Seen(codes_BN), [TextSampling(1.0, 1, tokens)], [0, 1]))

    assert caption(17) - caption(9) <= 2


def test_a_training_step_waits_for_the_rows_of_an_embedding_alone() -> None:
    step = PairStep(make_model(SMALL, "cuda", torch.float32), SMALL, "cuda")
    assert waits(step) <= 3


@pytest.mark.parametrize(
    "mistake",
    [
        lambda on_gpu: on_gpu + torch.ones(3),
        lambda on_gpu: torch.cat((on_gpu, torch.ones(3))),
        lambda on_gpu: torch.ones(3)[on_gpu.long()],
        lambda on_gpu: on_gpu.numpy(),
        lambda on_gpu: on_gpu.long() @ on_gpu.long()[:, None],
        lambda on_gpu: torch.rand_like(on_gpu, generator=torch.Generator()),
        lambda on_gpu: on_gpu.uniform_(generator=torch.Generator()),
    ],
)
def test_what_goes_on_a_cpu_alone_is_refused(mistake: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        mistake(torch.ones(3, device="cuda"))
