"""Every family holds what stages rely on, and the whole loop runs on one that nobody knows."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image

from core.config import Training
from core.errors import UserError
from core.process_group import SINGLE
from core.store import Store
from data.shapes.records import make_records
from data.tables import read_table, write_table
from models import registry
from models.conformance import CAPTIONS, PROMPTS, checks
from models.families.janus.model import FAMILY as JANUS
from models.families.showo.model import FAMILY as SHOWO
from models.families.vila_u.model import FAMILY as VILA_U
from models.protocol import MODALITIES, UnifiedModel
from tasks.train import METRICS, read_metrics
from tests.commands import hermesflow
from tests.fake_family.model import FAMILY as FAKE
from tests.fake_family.model import make_model
from tests.janus_tiny import random_janus, tiny_janus
from tests.loops import play, quick_exact
from tests.showo_tiny import tiny_model
from tests.stage_inputs import OBJECTIVES, RECONSTRUCTION, make_config
from tests.vila_u_tiny import random_vila_u, tiny_vila_u
from training.data import EXACT, Draws, Grouped, PairRows, Redraws, ReferenceLogps
from training.processes import make_accelerator
from training.trainer import PairTrainer


@pytest.mark.parametrize(
    ("model", "family"),
    [(tiny_model, SHOWO), (tiny_janus, JANUS), (tiny_vila_u, VILA_U), (make_model, FAKE)],
)
def test_a_family_conforms(model: object, family: registry.Family) -> None:
    found = list(checks(model(), family))  # type: ignore[operator]
    assert [f"{check.name}: {check.problem}" for check in found if check.problem] == []
    assert len(found) >= 20


@pytest.mark.parametrize("section", OBJECTIVES, ids=lambda one: one["name"])
@pytest.mark.parametrize("make", [tiny_model, tiny_janus, tiny_vila_u, make_model])
def test_an_objective_takes_a_step_on_every_family(
    make: Callable[[], UnifiedModel], section: dict[str, object]
) -> None:
    model, num = make(), len(PROMPTS)
    draws = 0 if model.exact_images else 2
    name = section["name"]
    beside = {"weight": 0.5, "shrink": 1} if name != "reconstruction" else None
    if name == "group_policy":
        section = section | {"weigh_alike": True}
    training = make_config(
        training__objective=section, training__image_draws=draws, training__reconstruction=beside
    ).training
    rows = rows_of(model, grouped=training.objective.learns_from == "groups")
    batch = rows.batch(np.arange(num), 0, Draws.of(0, training))
    with torch.no_grad():
        stored = {m: torch.stack(model.pair_logps(batch, m)[:2], dim=1) for m in MODALITIES}
    reference = ReferenceLogps(stored["caption"].numpy(), stored["image"].numpy()[None])
    before = {name: p.clone() for name, p in model.pair_module.named_parameters()}
    trainer = PairTrainer(
        model, make_accelerator("cpu", SINGLE, "float32", shared_weights=False), rows,
        reference if training.objective.uses_reference else None, training, 0, pairs_at_once=2,
    )  # fmt: skip
    metrics, _ = trainer.step(0)
    assert all(math.isfinite(value) for value in metrics.values())
    parts = ["loss/caption", "loss/image", "loss/reconstruction"]
    if name == "internal_gap":
        assert parts.pop(0) not in metrics
    if name == "reconstruction":
        assert parts.pop() not in metrics
    assert metrics["loss"] == pytest.approx(sum(metrics[part] for part in parts))
    assert metrics["grad_norm"] > 0
    changed = [n for n, p in model.pair_module.named_parameters() if not torch.equal(p, before[n])]
    assert changed


def rows_of(model: UnifiedModel, *, grouped: bool) -> PairRows:
    """Pairs, or three groups of two samples, of random pictures."""
    random, num = np.random.default_rng(0), len(PROMPTS)
    noise = random.integers(0, 256, (num, 40, 40, 3), dtype=np.uint8)
    pictures = [Image.fromarray(one) for one in noise]
    drawn = model.encode(pictures)
    text = {"record_id": ["a", "b", "c"], "iteration": [1] * num, "prompt": list(PROMPTS)}
    text |= {"caption_win": list(CAPTIONS), "caption_lose": list(CAPTIONS[::-1])}
    text |= {"caption_win_score": [0.9] * num, "image_win_score": [0.8] * num}
    both = {m: np.tile([1.0, -1.0], (num, 1)) for m in MODALITIES}
    groups = Grouped(
        np.arange(num),
        {m: np.tile([0, 1], (num, 1)) for m in MODALITIES},
        both,
        {m: np.abs(one) / 2 for m, one in both.items()},
        np.array([0.2, 0.4, 0.6]),
    )
    seen = model.see(pictures)
    return PairRows(
        pa.table(text), seen, drawn, drawn[::-1], groups if grouped else None, Redraws(seen, drawn)
    )


def test_faults_of_a_family_are_found() -> None:
    """Noise of the batch instead of the record, a weight that nothing trains, wrong likelihoods."""
    model = make_model()
    generate, logps = model.generate, model.pair_module.forward
    model.generate = lambda p, m, how, seeds: generate(p, m, how, [len(p)] * len(p))  # type: ignore[method-assign]
    model.pair_module.idle = torch.nn.Parameter(torch.ones(1))
    model.pair_module.forward = lambda packed: logps(packed)._replace(  # type: ignore[method-assign]
        rejected_logps_B=logps(packed).rejected_logps_B * 1.01
    )
    found = {check.name for check in checks(model, FAKE) if check.problem}
    assert {
        "pictures do not depend on their batch",
        "another seed gives other pictures",
        "a gradient reaches every trained weight",
        "winner and loser are treated alike: images",
    } <= found


@pytest.mark.parametrize(
    ("name", "make", "changes"),
    [
        ("fake", make_model, {}),
        pytest.param(
            *("janus", random_janus),
            {"training__prompt_dropout": 0.3, "training__learning_rate": 3e-3},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("vila_u", random_vila_u),
            {"training__prompt_dropout": 0.3, "training__learning_rate": 3e-3},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_loop_runs_on_families_with_exact_likelihoods(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    make: Callable[[], UnifiedModel],
    changes: dict[str, object],
) -> None:
    """Every stage of an iteration, on pictures drawn code by code; one family is of others."""
    monkeypatch.setitem(registry.FAMILIES, "fake", "tests.fake_family")
    make().save_pretrained(tmp_path / name)
    config = quick_exact(tmp_path / "store", name, tmp_path / name, **changes)
    runner, _ = play(config)
    results = {name: result for name, _, result in runner.done}
    store = Store(config.store)
    logps = read_table(store.open(results["reference"].ref).parts(), "ref_logps").to_pydict()
    assert set(logps["draw_seed"]) == {EXACT}
    assert len(logps["logp"]) == 4 * store.open(results["pair"].ref).manifest["results"]["pairs"]
    rows = read_metrics(store.open(results["train"].ref).path(METRICS))
    assert rows[0]["image/loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert rows[-1]["image/rewards/margins"] > 0
    assert "evaluate" in results


@pytest.mark.slow
@pytest.mark.parametrize(("name", "make"), [("janus", random_janus), ("vila_u", random_vila_u)])
def test_the_gap_and_benchmarks_take_every_family(
    tmp_path: Path, name: str, make: Callable[[], UnifiedModel]
) -> None:
    """By the commands that users type, on a model that knows nothing."""
    model = tmp_path / name
    make().save_pretrained(model)
    document = quick_exact(tmp_path / "store", name, model).model_dump(mode="json")
    config = tmp_path / "my.yaml"
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    pool = tmp_path / "pool.parquet"
    write_table(pool, "pool", [record.row() for record in make_records(4, "validation", 0)])
    common = ["--checkpoint", str(model), "--config", str(config)]
    to = {one: tmp_path / one for one in ("gap", "shapes-pope", "shapes-geneval")}
    assert hermesflow(["gap", "--pool", str(pool), *common, "--to", str(to["gap"])]) == 0
    for benchmark in ("shapes-pope", "shapes-geneval"):
        words = ["benchmark", benchmark, "--limit", "6", "--split", "validation"]
        assert hermesflow([*words, *common, "--to", str(to[benchmark])]) == 0
    for place in to.values():
        assert (place / "metrics.parquet").is_file()
    rows = read_table(to["gap"] / "metrics.parquet", "metrics").to_pylist()
    assert {"understanding", "generation", "gap"} <= {row["name"] for row in rows}


@pytest.mark.parametrize(
    ("sampler", "draws", "message"),
    [
        ("mask_predict", 0, "Fake draws by autoregressive"),
        ("autoregressive", 2, "exact for Fake; set it to 0"),
    ],
)
def test_settings_that_do_not_fit_a_family_are_refused(
    monkeypatch: pytest.MonkeyPatch, sampler: str, draws: int, message: str
) -> None:
    monkeypatch.setitem(registry.FAMILIES, "fake", "tests.fake_family")

    def training(**changes: object) -> Training:
        return make_config(
            **{f"training__{name}": value for name, value in changes.items()}
        ).training

    with pytest.raises(UserError, match=message):
        registry.check_settings("fake", sampler, training(image_draws=draws))
    with pytest.raises(UserError, match="image_draws = 0, but Show-o estimates"):
        registry.check_settings("showo", "mask_predict", training(image_draws=0))
    with pytest.raises(UserError, match="train_vision = true, but Show-o has no vision tower"):
        registry.check_settings("showo", "mask_predict", training(train_vision=True))
    monkeypatch.setattr("tests.fake_family.model.FAMILY", replace(FAKE, redraws=False))
    for changes, field in (
        ({"objective": RECONSTRUCTION}, r"training.objective.name has .* set it to pair_dpo"),
        ({"reconstruction": {"weight": 1.0, "shrink": 1}}, r"reconstruction has .* set it to null"),
    ):
        with pytest.raises(UserError, match=field):
            registry.check_settings("fake", "autoregressive", training(image_draws=0, **changes))
    lora = {"rank": 2, "alpha": 2}
    both = training(image_draws=0, train_vision=True, lora=lora)
    with pytest.raises(UserError, match="set one of them to false or null"):
        registry.check_settings("janus", "autoregressive", both)
    with pytest.raises(UserError, match="'shwo' is unknown; known: fake, janus, showo, vila_u"):
        registry.family("shwo")
