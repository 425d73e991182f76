"""What only a GPU can show: `pytest -m gpu`. Skipped where there is none."""

from pathlib import Path

import pytest
import torch

from core.store import Store
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
