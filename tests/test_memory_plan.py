"""Plans of memory hold against what was measured, and what cannot fit is refused with a way out."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from stage_inputs import make_config, pair_row, publish, publish_model

from core.config import Config
from core.errors import UserError
from core.stage import run_stage
from core.store import Store
from flows import preflight
from flows.preflight import check, memory_table
from models import batches, memory
from models.memory import available_bytes, check_training, fitting_records, show
from models.memory_plan import (
    Need,
    Shape,
    Step,
    answers,
    captions,
    for_training,
    images,
    training,
)
from tasks.reference import REFERENCE
from tasks.train import TRAIN
from tests.loops import quick
from tests.showo_tiny import tiny_model

ROOT = Path(__file__).parent.parent
GIB = 2**30
# The released Show-o at 256 pixels.
FULL = Shape(
    width=2048,
    inner=8192,
    layers=24,
    heads=32,
    vocabulary=58498,
    codebook=8192,
    image_tokens=256,
    text_tokens=128,
    weights=1_448_176_770,
    vq_weights=95_000_000,
    vq_channels=128.0,
    side=256,
)
FOUR_PAIRS = Step(4, 1, 128, 129, precision="bfloat16", accumulates=False, gpu=True)
H100 = 79.0 * GIB


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    [
        "train float32",
        "train bfloat16",
        "train float32 recompute",
        "train float32 halves",
        "train float32 lora",
        "train bfloat16 lora recompute",
        "captions float32",
        "captions bfloat16",
        "images float32",
        "answers float32",
        "reference float32",
    ],
)
def test_a_plan_is_right_to_a_quarter(stage: str) -> None:
    """Of the largest resident size of a process that does it, without what it is before."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.measured", *stage.split()],
        cwd=ROOT,
        # Freed blocks go back to the system at once, or what is free would be measured too.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert 1 / 1.25 < found["planned"] / found["taken"] < 1.25, found


def test_a_shape_is_read_from_a_model_folder(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    shape = Shape.from_folder(tmp_path)
    assert shape.weights == sum(p.numel() for p in model.network.parameters())
    assert shape.vq_weights == sum(p.numel() for p in model.vq.parameters())
    assert shape.vocabulary == model.config.vocab_size
    assert shape.side == model.resolution
    # All but norms and biases.
    matrices = 2 * shape.table + shape.layers * shape.block
    assert 0.9 < matrices / shape.weights < 1


def test_weights_gradients_and_both_moments_of_both_modalities() -> None:
    """16 bytes a weight and modality's moments and gradient, with one copy of the weights."""
    parts = training(FULL, replace(FOUR_PAIRS, precision="float32")).fixed
    assert parts["weights"] == 4 * FULL.weights
    assert parts["gradients"] == 2 * 4 * FULL.weights
    assert parts["moments"] == 2 * 2 * 4 * FULL.weights
    alone = training(FULL, replace(FOUR_PAIRS, optimizers=1)).fixed
    assert alone["moments"] == parts["moments"] / 2


@pytest.mark.parametrize(
    "change",
    [{"pairs": 2}, {"recompute": True}, {"rank": 16}, {"shards": 8}, {"masks": 1}],
    ids=str,
)
def test_every_saving_saves(change: dict[str, int]) -> None:
    step = replace(FOUR_PAIRS, pairs=16, masks=2)
    assert training(FULL, replace(step, **change)).total < training(FULL, step).total


def test_gradients_of_a_batch_in_parts_are_those_of_all_its_tokens() -> None:
    few = replace(FOUR_PAIRS, pairs=1, alone=True)
    in_parts = replace(few, batch=16)
    at_once = replace(few, pairs=16)
    gradients = [training(FULL, step).fixed["gradients"] for step in (few, in_parts, at_once)]
    assert gradients[0] < gradients[1] == gradients[2]
    assert training(FULL, in_parts).total < training(FULL, at_once).total


def test_halves_of_a_batch_have_a_gradient_each(tmp_path: Path) -> None:
    shape = Shape.from_folder(Path("models/assets/shapes/base"))
    whole = for_training(quick(tmp_path), shape, 1)
    halved = for_training(quick(tmp_path, runtime__threads=0), shape, 1)
    gradients = [training(shape, step).fixed["gradients"] for step in (whole, halved)]
    assert gradients[1] == 2 * gradients[0]
    single = [replace(step, pairs=1, batch=1) for step in (whole, halved)]
    assert training(shape, single[0]) == training(shape, single[1])
    assert for_training(quick(tmp_path, runtime__threads=0), FULL, 1).lanes == 1
    on_gpu = quick(tmp_path, runtime__threads=0, runtime__device="cuda")
    assert for_training(on_gpu, shape, 1).lanes == 1


def test_recomputation_keeps_a_small_part_of_the_activations() -> None:
    kept = training(FULL, FOUR_PAIRS).fixed["activations"]
    assert training(FULL, replace(FOUR_PAIRS, recompute=True)).fixed["activations"] < kept / 8


def test_full_fine_tuning_of_the_released_model_fits_an_h100() -> None:
    check_training(FULL, FOUR_PAIRS, H100)
    with pytest.raises(UserError) as error:
        check_training(FULL, replace(FOUR_PAIRS, pairs=64), H100)
    said = str(error.value)
    assert "runtime.batch_pairs = 64 needs" in said
    assert "79 GiB are free; set runtime.batch_pairs: 16; or set runtime.recompute: true; " in said
    assert "or set training.lora: {rank: 16, alpha: 32} and runtime.batch_pairs: 32; " in said
    assert said.endswith("or take a device with more memory")


@pytest.mark.parametrize("pairs", [4, 64])
def test_ways_out_fit(pairs: int) -> None:
    """On a card where only adapters or parts of the weights have room, nothing else is named."""
    step = replace(FOUR_PAIRS, pairs=pairs)
    with pytest.raises(UserError) as error:
        check_training(FULL, step, 24.0 * GIB)
    said = str(error.value)
    assert "24 GiB are free; set training.lora: {rank: 16, alpha: 32}" in said
    assert "; or set runtime.shard_weights: true on 4 GPUs" in said
    with pytest.raises(UserError, match="1 GiB are free; take a device with more"):
        check_training(FULL, step, 1.0 * GIB)


def test_fewer_records_are_begun_with_where_memory_is_tight(
    caplog: pytest.LogCaptureFixture,
) -> None:
    need = images(FULL, "bfloat16", 16, 50, True, 40)
    one = replace(need, records=1).total
    logger = logging.getLogger("test")
    # Another test may have asked for more to be said.
    with caplog.at_level(logging.WARNING):
        assert fitting_records(need, 2 * need.total, logger) == 40
        assert caplog.text == ""
        fitting = fitting_records(need, 60.0 * GIB, logger)
    assert 1 < fitting < 40
    assert replace(need, records=fitting).total <= 60 * GIB
    assert f"going on with {fitting}" in caplog.text
    with pytest.raises(UserError, match=r"one record at once needs .* model.precision: bfloat16"):
        fitting_records(need, one / 2, logger)


def test_answers_on_a_cpu_take_memory_for_some_records_at_a_time() -> None:
    few, many = (answers(FULL, "float32", records, on_cpu=True) for records in (20, 400))
    assert few.total == many.total < answers(FULL, "float32", 400, on_cpu=False).total
    assert many.fitting(many.total) == 400
    assert 0 < many.fitting(0.9 * many.total) < 20


def test_a_table_is_shown_only_where_memory_is_tight(caplog: pytest.LogCaptureFixture) -> None:
    need = captions(FULL, "bfloat16", 10, 100, 8)
    with caplog.at_level(logging.INFO):
        show(need, 4 * need.total, logging.getLogger("test"))
        assert len(caplog.records) == 1
        show(need, need.total, logging.getLogger("test"))
    assert len(caplog.records) == 2 + len(need.parts)
    assert "weights                  2.7 GiB" in caplog.text


def test_processes_of_a_cpu_share_its_memory(tmp_path: Path) -> None:
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


def little(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """As if the device had no more."""
    for module in (preflight, batches):
        monkeypatch.setattr(module, "available_bytes", lambda device, processes=1: size)
    monkeypatch.setattr("tasks.train.available_bytes", lambda device, processes=1: size)


def test_stages_refuse_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, config = Store(str(tmp_path / "store")), make_config()
    inputs = {
        "checkpoint": publish_model(store),
        "pairs": publish(store, "pairs", [[pair_row(number) for number in range(4)]]),
    }
    reference = run_stage(REFERENCE, config, store, inputs).ref
    little(monkeypatch, 1000.0)
    with pytest.raises(UserError, match=r"a training step of runtime.batch_pairs = .* needs"):
        run_stage(TRAIN, config, store, inputs | {"reference": reference})
    with pytest.raises(UserError, match="one record at once needs"):
        run_stage(REFERENCE, make_config(seed=1), store, inputs)


def test_a_stage_goes_on_with_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, config = Store(str(tmp_path / "store")), make_config()
    inputs = {
        "checkpoint": publish_model(store),
        "pairs": publish(store, "pairs", [[pair_row(number) for number in range(4)]]),
    }
    need = fixed_and_each(store, inputs["checkpoint"].uri, config)
    little(monkeypatch, sum(need.fixed.values()) + 2 * sum(need.each.values()) + 1)
    run_stage(REFERENCE, config, store, inputs)
    assert "runtime.batch_records = 3 would need" in caplog.text
    assert "going on with 2" in caplog.text


def fixed_and_each(store: Store, uri: str, config: Config) -> Need:
    from models.memory_plan import for_reference

    return for_reference(config, Shape.from_folder(store.open(uri).path("model")))


def test_check_config_shows_every_stage_and_refuses_what_cannot_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(tmp_path / "store")
    check(config)
    table = memory_table(config)
    for stage in ("sample-captions", "sample-images", "score-images", "train", "evaluate"):
        assert f"  {stage} " in table
    little(monkeypatch, 1000.0)
    with pytest.raises(UserError, match="memory of stage sample-captions: one record at once"):
        check(config)
