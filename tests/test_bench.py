"""The speed benchmark runs at a small size, and counts arithmetic as torch does."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench import gpu
from bench.__main__ import main as compare_main
from bench.flops import Work, forward_flops, image_work, packed_work, text_work, training_flops
from bench.paths import PATHS, TINY, agreement
from bench.synthetic import SMALL, Data, make_model
from models.nn.packing import IGNORE, Segment, pack
from models.protocol import MaskPredict, Seen, TextSampling

ROOT = Path(__file__).parent.parent
CONFIG = SMALL.network


def test_every_part_runs_at_a_small_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "speed.json"
    command = ["--size", "small", "--device", "cpu", "--runs", "1", "--json", str(file)]
    assert gpu.main(command) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["part"] for row in rows] == list(gpu.PARTS)
    assert {row["part"]: row["error"] for row in rows if row["error"]} == {}
    assert all(0 < row["mfu"] <= 1 for row in rows)
    table = file.with_suffix(".md").read_text()
    assert table in capsys.readouterr().out
    assert "steps/s" in table


def test_a_part_that_fails_says_why_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(size: object, device: str) -> gpu.Prepared:
        raise RuntimeError("no memory\nand more")

    monkeypatch.setitem(gpu.PARTS, "train", fails)  # type: ignore[call-overload]
    gpu.main(["--size", "small", "--device", "cpu", "--parts", "train", "rate", "--runs", "1"])
    shown = capsys.readouterr().out
    assert "| train | RuntimeError: no memory |" in shown
    assert "TFLOP/s" in shown


@pytest.mark.parametrize("name", [name for name in PATHS if PATHS[name].agree > 0])
def test_both_sides_give_the_same(name: str) -> None:
    path = PATHS[name]
    build = path.check or path.build
    ours, straight = (build(TINY, side)() for side in ("ours", "plain"))
    assert agreement(path, ours, straight) == 1.0
    assert agreement(path, ours + 1, straight) == 0.0


def test_sides_are_compared_in_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--scale", "tiny", "--runs", "1", "--to", str(tmp_path), "--paths", "pair-step"]
    assert compare_main(command) == 0
    table = (tmp_path / "performance.md").read_text(encoding="utf-8")
    assert "| a Pair-DPO step |" in table
    assert table in capsys.readouterr().out
    document = json.loads((tmp_path / "performance.json").read_text(encoding="utf-8"))
    assert document["paths"]["pair-step"]["agree"] == 1.0


def test_it_needs_no_more_than_torch_and_transformers() -> None:
    code = (
        "import sys\n"
        "for name in ('pydantic', 'pyarrow', 'pandas', 'datasets', 'accelerate', 'prefect'):\n"
        "    sys.modules[name] = None\n"
        "import bench.gpu\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def counted(work: Work) -> int:
    return forward_flops(CONFIG, work)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("labelled", [20, 8])
def test_arithmetic_is_that_of_torch_where_nothing_is_hidden(trained: bool, labelled: int) -> None:
    """Torch counts keys that a mask hides too, so all see all here."""
    model = make_model(SMALL, "cpu", torch.float32)
    ids = np.arange(20)
    labels = np.where(ids < labelled, ids, IGNORE)
    batch = pack([[Segment(ids, full=True, labels=labels)]] * 3, model.tokenizer.special.pad)
    work = packed_work(CONFIG, batch, model.tokenizer.special.pad)
    read = 3 * labelled
    assert work == Work(60, 60 * 20, read, read * 20, read * CONFIG.vocab_size)
    # Of attention it counts the products of this backend alone, on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logps = model.pair_module.token_logps(batch)
        if trained:
            logps.sum().backward()
    wanted = training_flops(CONFIG, work) if trained else forward_flops(CONFIG, work)
    assert counter.get_total_flops() == wanted


def test_frozen_weights_save_a_third() -> None:
    work = Work(1000, 10000, 300, 3000, 100)
    full, lora = training_flops(CONFIG, work), training_flops(CONFIG, work, lora_rank=1)
    assert 2 / 3 < lora / full < 0.75


def test_work_of_sampling_is_what_is_fed_to_the_network() -> None:
    model = make_model(SMALL, "cpu", torch.float32)
    data = Data(CONFIG)
    network, fed = model.network, []
    forward = network.forward
    network.forward = lambda ids, *a, **k: fed.append(ids.numel()) or forward(ids, *a, **k)  # type: ignore[method-assign, func-returns-value]
    model.generate(data.texts(1, 5), 2, MaskPredict(3, 1.0), [0])
    lengths = [5 + 3, 3]
    # Prompts are padded to the longest.
    assert sum(fed) == image_work(CONFIG, lengths, 2, 3, guided=True).tokens + 5
    fed.clear()
    model.caption(Seen(data.codes(2)), [TextSampling(1.0, 1, 4)] * 3, [0, 0])
    assert sum(fed) == 2 * text_work(CONFIG, fed[0] // 2, [4, 4, 4]).tokens
