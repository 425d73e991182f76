"""A batch that does not fit into memory is done again in halves, with the same results."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_inputs import pair_row, publish, publish_model

from core.config import Config
from core.errors import UserError
from core.stage import Inputs, run_stage
from core.store import Store
from models.batches import Batches
from models.families.showo.model import ShowoModel
from tasks.base import BASE
from tasks.evaluate import EVALUATE
from tasks.judge import STAGE as JUDGE
from tasks.pool import POOL, TEST
from tasks.reference import REFERENCE
from tasks.sample import CAPTIONS, IMAGES
from tasks.score import SCORE_IMAGES
from tests.limits import run_python
from tests.loops import quick

FITS = 4
# Works in batches of 64 MB a record with 300 MB free, in two steps, of which the second fails.
LIMITED = """
import logging, resource
import torch
from models.batches import Batches

logging.basicConfig(format="%(message)s")
status = open("/proc/self/status").read()
used = int(status.split("VmSize:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20, resource.RLIM_INFINITY))

def work(first, last):
    halves = [torch.ones((last - first) * 2**23) for _ in range(2)]
    return int(sum(half.sum() for half in halves)) // 2**23

print(list(Batches(8, "runtime.batch_records", "lower it").map(10, work)))
"""


def allocate_too_much() -> None:
    torch.empty(2**50, dtype=torch.uint8)


def test_a_failed_allocation_halves_the_batch_and_frees_what_it_had() -> None:
    """With what the failed batch holds still in memory, 4 would not fit either."""
    done = run_python("-c", LIMITED)
    assert done.stdout.strip() == "[8, 8, 4]"  # two tensors of ones for each record
    assert done.stderr.count("out of memory") == 1
    assert "out of memory with 8 records at once ([enforce fail" in done.stderr
    assert "going on with 4; set runtime.batch_records: 4" in done.stderr


def test_records_come_once_and_in_order_whatever_fails(caplog: pytest.LogCaptureFixture) -> None:
    def work(first: int, last: int) -> list[int]:
        if last - first > (1 if first >= 6 else 3):
            allocate_too_much()
        return list(range(first, last))

    batches = Batches(7, None, "")
    assert [n for part in batches.map(11, work) for n in part] == list(range(11))
    assert batches.size == 1
    assert [record.args[0] for record in caplog.records] == [7, 3]  # type: ignore[index]
    assert "set" not in caplog.text


def test_one_record_that_does_not_fit_is_refused_with_the_way_out() -> None:
    def work(first: int, last: int) -> None:
        allocate_too_much()

    batches = Batches(2, "runtime.batch_records", "lower sampling.images.num_samples = 16")
    with pytest.raises(UserError) as error:
        list(batches.map(3, work))
    assert "one record at once" in str(error.value)
    assert "no lower runtime.batch_records helps" in str(error.value)
    assert "lower sampling.images.num_samples = 16" in str(error.value)
    assert "can't allocate memory" in str(error.value)


def test_other_errors_pass() -> None:
    def work(first: int, last: int) -> torch.Tensor:
        return torch.ones(2) @ torch.ones(3)

    with pytest.raises(RuntimeError, match="size"):
        list(Batches(4, None, "").map(4, work))


def scarce(method: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    """`method` on a device that holds FITS records at once."""

    def limited(model: ShowoModel, first: Any, *others: Any) -> Any:
        size = len(first.prompts) if method.__name__ == "pair_logps" else len(first)
        if size > FITS:
            calls.append(method.__name__)
            allocate_too_much()
        return method(model, first, *others)

    return limited


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Store, Store]:
    return Store(str(tmp_path / "ample")), Store(str(tmp_path / "short"))


def config(size: int) -> Config:
    return quick(
        "unused",
        data__pool_records=12,
        data__test_records=12,
        sampling__shard_records=2 * FITS,
        sampling__images__steps=2,
        evaluation__images_per_prompt=1,
        runtime__batch_records=size,
    )


def digests(store: Store, size: int) -> dict[str, str]:
    """Of what the stages make that hold a model, training apart."""
    settings = config(size)
    made = {
        name: run_stage(stage, settings, store, {}).ref
        for name, stage in (("pool", POOL), ("test", TEST), ("checkpoint", BASE))
    }
    made["base"] = made["checkpoint"]
    for name, stage in (
        ("captions", CAPTIONS),
        ("images", IMAGES),
        ("image_scores", SCORE_IMAGES),
        ("judge", JUDGE),
        ("evaluation", EVALUATE),
    ):
        inputs: Inputs = {given: made[given] for given in stage.inputs}
        made[name] = run_stage(stage, settings, store, inputs).ref
    tiny = {
        "checkpoint": publish_model(store),
        "pairs": publish(store, "pairs", [[pair_row(number) for number in range(10)]]),
    }
    made["reference"] = run_stage(REFERENCE, settings, store, tiny).ref
    return {name: ref.digest for name, ref in made.items()}


def test_stages_make_the_same_when_memory_is_scarce(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Bit for bit what they make with the smaller size in the config."""
    ample, short = stores
    wanted = digests(ample, FITS)
    calls: list[str] = []
    for name in ("encode", "generate", "answer", "pair_logps"):
        monkeypatch.setattr(ShowoModel, name, scarce(getattr(ShowoModel, name), calls))
    with caplog.at_level(logging.WARNING, "models.batches"):
        assert digests(short, 2 * FITS) == wanted
    # Once in captions, images, scores, judge, evaluation and reference: none tries a size twice.
    encode = "encode"
    assert calls == [encode, "generate", "answer", encode, encode, encode]
    assert caplog.text.count("going on with 4; set runtime.batch_records: 4") == len(calls)
