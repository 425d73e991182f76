"""What cannot hold a model's weights, gradients and moments is refused before any work."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from stage_inputs import make_config, pair_row, publish, publish_model
from torch import ones

from core.errors import UserError
from core.stage import run_stage
from core.store import Store
from flows import preflight
from flows.preflight import check, memory_table
from models import batches, memory
from models.families.showo.model import ShowoModel
from models.memory import (
    Sizes,
    available_bytes,
    check_memory,
    floor_of,
    inference_floor,
    training_floor,
)
from tasks.reference import REFERENCE
from tasks.train import TRAIN
from tests.loops import quick
from tests.showo_tiny import tiny_model

GIB = 2**30
FULL = Sizes(network=1_448_176_770, frozen=95_000_000, per_rank=24 * (4 * 2 + 2 * 5) * 2048)
"""The released Show-o at 256 pixels."""


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder holds the released Show-o."""
    monkeypatch.setattr(Sizes, "from_folder", lambda *_: FULL)


def refusal(stage: str, available: float, processes: int = 1, **changes: Any) -> str:
    with pytest.raises(UserError) as error:
        check_memory(stage, make_config(**changes), Path("any"), available, processes)
    return str(error.value)


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    sizes = Sizes.from_folder(tmp_path)
    assert sizes.network == sum(p.numel() for p in model.network.parameters())
    assert sizes.frozen == sum(p.numel() for p in model.vq.parameters())


def test_any_family_in_any_number_of_files_has_sizes(tmp_path: Path) -> None:
    (tmp_path / "vision_tower").mkdir()
    save_file({"embed.weight": ones(10, 4)}, tmp_path / "model-00001-of-00002.safetensors")
    block = {"layers.0.proj.weight": ones(8, 4), "layers.0.norm.weight": ones(4)}
    save_file(block, tmp_path / "model-00002-of-00002.safetensors")
    save_file({"layers.0.proj.weight": ones(5, 5)}, tmp_path / "vision_tower/model.safetensors")
    assert Sizes.from_folder(tmp_path) == Sizes(network=76, frozen=25, per_rank=12)


def test_adapters_are_counted_as_they_are_made(tmp_path: Path) -> None:
    from models.adapters import Adapters

    tiny_model().save_pretrained(tmp_path)
    model = ShowoModel.from_pretrained(tmp_path)  # the tests share the other
    Adapters(model, make_config(training__lora={"rank": 3, "alpha": 6}).training.lora, 0)  # type: ignore[arg-type]
    trained = sum(p.numel() for p in model.network.parameters() if p.requires_grad)
    assert trained == 3 * Sizes.from_folder(tmp_path).per_rank


def test_weights_gradients_and_both_moments() -> None:
    one = training_floor(FULL)
    assert (one["weights"], one["gradients"]) == (4 * FULL.network, 4 * FULL.network)
    assert one["moments"] == 2 * 4 * FULL.network
    eight = training_floor(FULL, shards=8)
    assert eight["moments"] == one["moments"] / 8
    adapters = training_floor(FULL, rank=16)
    assert adapters["moments"] == 2 * 4 * 16 * FULL.per_rank
    assert adapters["weights"] == 4 * (FULL.network + 16 * FULL.per_rank)


def test_sampling_takes_weights_in_its_precision_and_evaluation_those_of_its_judge() -> None:
    half = inference_floor(FULL, "bfloat16")
    assert half == {"weights": 2 * FULL.network, "image tokenizer": 4 * FULL.frozen}
    config = make_config(model__precision="bfloat16", evaluation__judge="base")
    assert floor_of("evaluate", config, FULL) == half | {"judge": sum(half.values())}
    assert floor_of("reference", config, FULL)["weights"] == 4 * FULL.network


@pytest.mark.usefixtures("full")
def test_training_that_cannot_fit_is_refused_with_what_would() -> None:
    on_gpu = {"runtime__device": "cuda"}
    check_memory("train", make_config(**on_gpu), Path("any"), 79.0 * GIB)
    said = refusal("train", 20.0 * GIB, **on_gpu)
    assert said.startswith("memory of stage train: it needs at least 21.")
    assert "(weights 5.39 GiB, " in said
    assert "20 GiB are free; set training.lora: {rank: 16" in said
    assert "; or set runtime.shard_weights: true on 2 GPUs" in said
    assert said.endswith("; or end what else uses the memory; or take a device with more of it")
    check_memory("train", make_config(), Path("any"), 24.0 * GIB)
    assert "20 GiB are free; set training" in refusal("train", 20.0 * GIB)
    assert "GPUs" not in refusal("train", 20.0 * GIB)
    assert "1 GiB are free; end what else" in refusal("train", 1.0 * GIB)


@pytest.mark.usefixtures("full")
def test_sampling_that_cannot_fit_is_refused_with_what_would() -> None:
    assert "free; set model.precision: bfloat16; or end" in refusal("sample-images", 5.0 * GIB)
    assert "free; end what else" in refusal("reference", 5.0 * GIB)
    half = make_config(model__precision="bfloat16")
    check_memory("sample-images", half, Path("any"), 5.0 * GIB)


def test_processes_of_a_cpu_share_its_memory() -> None:
    assert available_bytes("cpu", 2) == pytest.approx(available_bytes("cpu") / 2, rel=0.2)


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_container_counts(tmp_path: Path, version: int) -> None:
    folder = tmp_path if version == 2 else tmp_path / "memory"
    folder.mkdir(exist_ok=True)
    names = ("memory.max", "memory.current")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, ("1000\n", "700\n"), strict=True):
        (folder / name).write_text(value)
    assert memory._cgroup_bytes(tmp_path) == 300
    (folder / "memory.stat").write_text("anon 3\ninactive_file 50\n")
    assert memory._cgroup_bytes(tmp_path) == 350
    (folder / names[0]).write_text("max\n" if version == 2 else f"{2**63 - 4096}\n")
    assert memory._cgroup_bytes(tmp_path) is None
    assert memory._cgroup_bytes(tmp_path / "none") is None


def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every device had 1,000 bytes."""
    for module in (preflight, batches):
        monkeypatch.setattr(module, "available_bytes", lambda device, processes=1: 1000.0)
    monkeypatch.setattr("tasks.train.available_bytes", lambda device, processes=1: 1000.0)


def test_stages_refuse_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, config = Store(str(tmp_path / "store")), make_config()
    inputs = {
        "checkpoint": publish_model(store),
        "pairs": publish(store, "pairs", [[pair_row(number) for number in range(4)]]),
    }
    reference = run_stage(REFERENCE, config, store, inputs).ref
    little(monkeypatch)
    with pytest.raises(UserError, match="memory of stage train: it needs at least"):
        run_stage(TRAIN, config, store, inputs | {"reference": reference})
    with pytest.raises(UserError, match="memory of stage reference: it needs at least"):
        run_stage(REFERENCE, make_config(seed=1), store, inputs)


def test_check_config_shows_every_stage_and_refuses_what_cannot_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(tmp_path / "store")
    check(config)
    table = memory_table(config)
    for stage in ("sample-captions", "sample-images", "score-images", "train", "evaluate"):
        assert f"  {stage} " in table
    little(monkeypatch)
    with pytest.raises(UserError, match="memory of stage sample-captions: it needs at least"):
        check(config)
