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

from bench.clock import Times
from bench.flops import Work, forward_flops, image_work, packed_work, text_work, training_flops
from bench.gpu import main
from bench.measure import PARTS, Row
from bench.report import as_markdown, peak_rate, round_of_paper
from bench.synthetic import SMALL, Data, make_model
from models import linear as linears
from models.nn.packing import IGNORE, Segment, pack
from models.protocol import MaskPredict, Seen, TextSampling

ROOT = Path(__file__).parent.parent
CONFIG = SMALL.network
# Compilers take long, and a machine may have none.
QUICK = [part for part in PARTS if not part.endswith("-compiled")]


def test_every_part_runs_at_a_small_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "speed.json"
    command = ["--size", "small", "--device", "cpu", "--json", str(file), "--parts", *QUICK]
    assert main(command) == 0
    stored = json.loads(file.read_text())
    failed = {row["variant"]: row["error"] for row in stored["rows"] if row["error"]}
    assert list(failed) == ["CUDA graph"]
    assert stored["peak_flops"] > 0
    assert all(share["per_second"] > 0 for share in stored["round"])
    shares = [row["share_of_peak"] for row in stored["rows"] if row["part"] == "train"]
    assert all(0 < share < 1 for share in shares)
    table = file.with_suffix(".md").read_text()
    assert table in capsys.readouterr().out
    assert "--size small" in table
    assert "| train | full fine-tuning | " in table


def test_parts_that_come_too_late_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--size", "small", "--device", "cpu", "--parts", "rate", "images", "--minutes", "0"])
    shown = capsys.readouterr().out
    assert shown.count("left out: no time left") == 3
    assert "| images | 80,000 images | not measured |  |" in shown


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
def test_arithmetic_is_that_of_torch_where_nothing_is_hidden(
    trained: bool, labelled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch counts keys that a mask hides too, so all see all here; what oneDNN does it misses."""
    model = make_model(SMALL, "cpu", torch.float32)
    ids = np.arange(20)
    labels = np.where(ids < labelled, ids, IGNORE)
    batch = pack([[Segment(ids, full=True, labels=labels)]] * 3, model.tokenizer.special.pad)
    work = packed_work(CONFIG, batch, model.tokenizer.special.pad)
    read = 3 * labelled
    assert work == Work(60, 60 * 20, read, read * 20, read * CONFIG.vocab_size)
    # Of attention it counts the products of this backend alone, on a CPU.
    monkeypatch.setattr(linears, "quick", lambda *_: False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logps = model.pair_module.token_logps(batch)
        if trained:
            logps.sum().backward()
    wanted = training_flops(CONFIG, work) if trained else forward_flops(CONFIG, work)
    # Logits are computed again for the backward pass, which is no useful work.
    again = 2 * CONFIG.hidden_size * work.logits if trained else 0
    assert counter.get_total_flops() == wanted + again


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


def test_a_round_is_counted_by_plain_rows() -> None:
    times = Times(0.5, 0.4, 0.6, 3, 2**30)
    rows = [
        Row("rate", "8 x 8", times, {}, 10**12),
        Row("images", "16 images, 50 steps", times, {"images": 16}, 10**11),
        Row("images, 10 steps", "16 at once", times, {"images": 16}),
        Row("train", "recomputation", times, {"steps": 1}),
        Row("train", "full fine-tuning", times, {"steps": 1}, 5 * 10**11),
    ]
    assert peak_rate(rows) == 2e12
    hours = {share.what: share.hours for share in round_of_paper(rows)}
    assert hours["images"] == pytest.approx(80000 / 32 / 3600)
    assert hours["training"] == pytest.approx(3000 / 2 / 3600)
    assert hours["captions"] is None
    table = as_markdown(rows, "A device", "a command")
    assert (
        "| train | full fine-tuning | 500 ms | 40.0 % of 3 | 2 steps/s | 50.0 % | 1.0 GiB |"
        in table
    )
    assert "| all | | 5 missing | 1.11 |" in table
