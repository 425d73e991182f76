"""`hermesflow plan`: costs of a model by its config, work of a run, and what earlier runs took."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from core.config import load_config
from core.errors import UserError
from core.hardware import device_name
from flows.planning.devices import Devices, parse_gpus
from flows.planning.measured import entries_of, measured, pairs_share
from flows.planning.plan import duration, row_of
from flows.planning.work import Model, Texts, works
from models.costs import Costs
from models.registry import family
from tests.commands import hermesflow
from tests.janus_tiny import tiny_janus
from tests.loops import Finished, quick
from tests.showo_tiny import tiny_model
from tests.stage_inputs import BEST_OF, GROUP_POLICY
from tests.vila_u_tiny import tiny_vila_u

TEXTS = Texts(prompt=10, caption=7, question=9, choice=2, questions=3, choices=4)
LENGTH = 48


def forward_flops(network: torch.nn.Module) -> float:
    """Of the blocks, over one row."""
    counter = FlopCounterMode(display=False)
    ids_1T = torch.zeros(1, LENGTH, dtype=torch.long)
    positions_1T = torch.arange(LENGTH)[None]
    attend_11TT = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    with torch.inference_mode(), counter:
        network(ids_1T, attend_11TT, positions_1T)
    return float(counter.get_total_flops())


@pytest.mark.parametrize("name", ["showo", "janus", "vila_u"])
def test_costs_are_those_that_are_counted(name: str, tmp_path: Path) -> None:
    makers = {"showo": tiny_model, "janus": tiny_janus, "vila_u": tiny_vila_u}
    model: Any = makers[name]()
    model.save_pretrained(tmp_path)
    of = family(name)
    assert of.costs is not None
    costs = of.costs(tmp_path)
    # The counter of torch leaves out attention where a CPU has a kernel of its own for it.
    assert forward_flops(model.network) == LENGTH * costs.blocks
    counter = FlopCounterMode(display=False)
    side = round(costs.drawn_positions**0.5)
    codes = torch.zeros(1, costs.drawn_positions, dtype=torch.long)
    with torch.inference_mode(), counter:
        if name == "showo":
            model.vq.decode_code(codes, (side, side))
        elif name == "janus":
            model.vq.decode(codes, side, side)
        else:
            model.tower.decode(codes[..., None].expand(-1, -1, model.config.depth))
    assert counter.get_total_flops() == pytest.approx(costs.decode, rel=0.05)
    trained = sum(p.numel() for p in model.network.parameters())
    assert costs.parameters == pytest.approx(trained, rel=0.25)


def test_costs_of_residual_codes_are_those_of_all_depths(tmp_path: Path) -> None:
    """The head of a picture's position is a transformer over its codes; seeing is quantising."""
    model = tiny_vila_u()
    model.save_pretrained(tmp_path)
    of = family("vila_u")
    assert of.costs is not None
    costs, config = of.costs(tmp_path), model.config
    codes = torch.zeros(1, config.depth, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        model.network.code_logits(torch.zeros(1, config.text.hidden_size), codes)
        model.network.picture_inputs(codes)
    assert counter.get_total_flops() == pytest.approx(costs.image_head, rel=0.05)
    pixels = torch.zeros(1, 3, config.image_size, config.image_size)
    with torch.inference_mode(), counter:
        model.network.picture_inputs(model.tower.quantise(model.tower.features(pixels)))
    assert counter.get_total_flops() == pytest.approx(costs.see, rel=0.05)


COSTS = Costs(
    blocks=100, attention=0, text_head=0, image_head=0, read_positions=50, drawn_positions=60,
    see=0, decode=0, pixels=32, parameters=1000,
)  # fmt: skip


def flops(**changes: object) -> dict[str, float]:
    """By stage, with a model whose positions cost 100 FLOPs and nothing else does."""
    config = load_config("pipeline.yaml", {"iterations": 2, **changes})
    plan = works(config, Model(COSTS, TEXTS), pool=100, test=40, pairs_share=0.5)
    return {work.stage: work.amount.flops for work in plan}


def test_work_is_what_the_config_asks_for() -> None:
    found = flops()
    # A prompt once, then 12 pictures of 60 positions in 8 steps each.
    assert found["sample-images"] == 100 * 100 * (10 + 12 * 8 * 60)
    # A picture, the words that ask, then 12 captions of 7 tokens and their end.
    assert found["sample-captions"] == 100 * 100 * (50 + 16 + 12 * 8)
    assert found["score-images"] == 100 * 100 * 12 * (50 + 3 * (9 + 4 * 2))
    pair = 100 * (50 + 2 * 8 + 10 + 2 * 4 * 60)
    assert found["reference"] == 50 * pair * 6
    assert found["train"] == 50 * pair * 6 * 3
    assert found["score-captions"] == found["pair"] == 0
    assert "reference" not in flops(**{"training.objective": BEST_OF})
    # 12 samples of each modality, two by two.
    grouped = flops(**{"training.objective": GROUP_POLICY})
    assert grouped["group"] == 0
    assert grouped["reference"] == 100 * 6 * pair * 6
    assert flops(**{"runtime.recompute": True})["train"] == 50 * pair * 6 * 4
    guided = flops(**{"sampling.images.guidance": 2.0})
    assert guided["sample-images"] == 100 * 100 * (10 + 12 * 8 * 60 * 2)


def test_gpus_are_named_by_number_and_kind() -> None:
    four = parse_gpus("4xh100")
    assert (four.name, four.count) == ("H100", 4)
    assert four.matches("NVIDIA H100 80GB HBM3")
    assert not four.matches("NVIDIA H1000")
    assert not parse_gpus("L40").matches("NVIDIA L40S")
    assert parse_gpus("RTX4090").matches("NVIDIA GeForce RTX 4090")
    # 989 TFLOP/s for a second on each, of which training gets 35 %.
    assert four.seconds(4 * 989e12, "training") == pytest.approx(1 / 0.35)
    for wrong in ("0xH100", "H900", "4", "xH100", "4xH100x"):
        with pytest.raises(UserError, match="such as 4xH100, of V100"):
            parse_gpus(wrong)


def test_times_have_units_that_people_read() -> None:
    assert [duration(s) for s in (8.04, 89, 300, 7200, 200_000)] == [
        "8.04 s", "89 s", "5 min", "2 h", "2.31 d",
    ]  # fmt: skip


def table(text: str) -> dict[str, list[str]]:
    """Cells of each stage."""
    lines = text[text.index("stage  ") :].splitlines()[1:]
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[: lines.index("")]]
    return {row[0]: row[1:] for row in rows}


def test_a_plan_of_a_cluster_without_the_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree("models/assets/shapes/base", model)
    for weights in model.rglob("*.safetensors"):
        weights.unlink()
    config = {"extends": str(Path("pipeline.yaml").resolve()), "store": str(tmp_path / "store")}
    config["model"] = {"checkpoint": str(model)}  # type: ignore[assignment]
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert hermesflow(["plan", str(path), "--gpus", "4xH100", "--price", "2.5"]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown[: shown.index("\nstage ")])["iterations"] == 3
    rows = table(shown)
    assert rows["sample-images"][:2] == ["3", "480 records"]
    assert rows["train"][-2:] != ["measured", ""]
    assert "on 4 x H100" in shown
    assert "at 2.5 for each" in shown
    assert "That every record makes a pair is the most" in shown
    assert "Memory: not known without the weights." in shown
    (model / "config.json").unlink()
    assert hermesflow(["plan", str(path)]) == 2
    assert "has no config.json; a plan needs it" in capsys.readouterr().err


def test_what_does_not_fit_a_gpu_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert hermesflow(["plan", "--gpus", "1xT4"]) == 0
    assert "DOES NOT FIT" not in capsys.readouterr().out


def test_earlier_runs_take_the_place_of_stated_shares(
    finished: Finished, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A plan of what has run already says what it took, and of twice the records twice that."""
    store = finished[0]
    config = quick(store, iterations=2)
    model = Model(COSTS, TEXTS)
    here = Devices(device_name("cpu"), 1, 1e9, {"sampling": 1, "reading": 1, "training": 1})
    entries = entries_of(config)
    known = measured(config, model, here, entries)
    manifests = [
        json.loads(path.read_text()) for path in store.glob("sample-images/*/manifest.json")
    ]
    assert manifests
    assert known["sample-images"].runs == len(manifests)
    assert known["sample-images"].seconds == pytest.approx(sum(m["seconds"] for m in manifests))
    assert known["sample-images"].records == 36 * len(manifests)
    assert {"train", "evaluate", "pair", "benchmark shapes-pope"} <= set(known)
    share = pairs_share(entries)
    assert share is not None
    assert 0 < share <= 1
    assert not measured(config, model, replace(here, name="H100"), entries)
    document = config.model_dump(mode="json")
    document["data"]["pool_records"] *= 2
    path = tmp_path / "twice.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    assert hermesflow(["plan", str(path)]) == 0
    rows = table(capsys.readouterr().out)
    assert rows["sample-images"][1] == "72 records"
    assert "measured" in rows["sample-images"]
    [train] = [work for work in works(config, model, 72, 48, 1.0) if work.stage == "train"]
    row = row_of(train, known["train"], config, model, here)
    assert row.disk == pytest.approx(2 * known["train"].disk / known["train"].runs)
    mean = known["sample-images"].seconds / known["sample-images"].runs
    assert rows["sample-images"][4] == duration(2 * 2 * mean)
