"""Numbers that are none, and samples to learn nothing from: what stops, and what it says."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from core.artifact import ArtifactRef
from core.config import Config
from core.errors import UserError
from core.stage import run_stage
from core.store import Store
from tasks.base import BASE
from tasks.pair import PAIR
from tasks.reference import REFERENCE
from tasks.train import TRAIN
from tests.loops import play, quick
from tests.showo_tiny import tiny_model
from tests.stage_inputs import (
    make_config,
    pair_row,
    pool_row,
    publish,
    publish_model,
    publish_samples,
)

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["model.safetensors", "vq/model.safetensors"])
def test_a_base_with_weights_that_are_no_numbers_is_refused(
    store: Store, tmp_path: Path, value: float, part: str
) -> None:
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    config = make_config(model__checkpoint=str(folder))
    run_stage(BASE, config, store, {})
    tensors = load_file(folder / part)
    name = sorted(name for name, tensor in tensors.items() if tensor.is_floating_point())[0]
    tensors[name].view(-1)[0] = value
    save_file(tensors, folder / part)
    with pytest.raises(UserError, match=rf"1 tensors of .* are not finite \({name}\).*before"):
        run_stage(BASE, config, store, {})


def test_a_base_without_files_is_refused(store: Store, tmp_path: Path) -> None:
    config = make_config(model__checkpoint=str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"model.checkpoint: there is no file in .*none"):
        run_stage(BASE, config, store, {})


def train(store: Store, config: Config) -> ArtifactRef:
    checkpoint = publish_model(store)
    pairs = publish(store, "pairs", [[pair_row(n) for n in range(10)]])
    inputs = {"checkpoint": checkpoint, "pairs": pairs}
    reference = run_stage(REFERENCE, config, store, inputs).ref
    return run_stage(TRAIN, config, store, {**inputs, "reference": reference}).ref


@pytest.mark.parametrize(
    "field", ["learning_rate", "beta", "weight", "nll_weight", "max_grad_norm", "weight_decay"]
)
@pytest.mark.parametrize("value", [1e39, 1e308, math.inf, math.nan])
def test_settings_beyond_single_precision_are_refused(field: str, value: float) -> None:
    own = field in ("learning_rate", "max_grad_norm", "weight_decay")
    path = f"training.{field}" if own else f"training.objective.image.{field}"
    with pytest.raises(UserError, match=path.replace(".", r"\.")):
        quick("unused", **{path.replace(".", "__"): value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("learning_rate", 1e30), ("learning_rate", 1e9), ("beta", 1e30), ("nll_weight", 1e30)],
)
def test_absurd_settings_stop_training_with_step_and_field(
    store: Store, field: str, value: float
) -> None:
    own = f"objective__image__{field}" if field != "learning_rate" else field
    config = make_config(**{f"training__{own}": value})
    with pytest.raises(UserError, match=r"training (stopped at step \d of 6|ended).*training\.\w+"):
        train(store, config)
    assert not list(Path(store.root).glob("train/*/manifest.json"))


def test_weights_that_only_the_last_step_spoils_make_no_checkpoint(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = torch.optim.AdamW.step
    taken: list[int] = []

    def spoil(optimizer: torch.optim.AdamW) -> None:
        step(optimizer)
        taken.append(1)
        if len(taken) == 6:
            with torch.no_grad():
                optimizer.param_groups[0]["params"][0].view(-1)[0] = math.inf

    monkeypatch.setattr(torch.optim.AdamW, "step", spoil)
    with pytest.raises(UserError, match=r"after 6 steps with 1 of \d+ tensors that are not finite"):
        train(store, make_config())


def pair(store: Store, texts: list[str], scores: list[float]) -> None:
    """Pairs of samples that are the same for each of three records."""
    records = [f"r{number}" for number in range(3)]
    captions = {name: list(zip(texts, scores, strict=True)) for name in records}
    images = {name: list(enumerate(scores)) for name in records}
    pool = publish(store, "pool", [[pool_row(name) for name in records]])
    inputs = {"pool": pool, "previous": [], "checkpoint": []}
    run_stage(PAIR, make_config(), store, inputs | publish_samples(store, captions, images))


@pytest.mark.parametrize(
    ("texts", "scores", "said"),
    [
        (["same", "same", "same"], [0.9, 0.9, 0.9], "differ by less"),
        (["", "", ""], [0.9, 0.1, 0.2], "empty"),
        (["a", "b", "c"], [0.5, 0.5, 0.5], "min_best"),
        (["a", "b", "c"], [0.1, 0.2, 0.3], "min_best"),
        (["a"], [0.9], "one image only"),
    ],
    ids=["all equal", "all empty", "constant scorer", "all filtered out", "one sample"],
)
def test_degenerate_samples_stop_with_how_many_and_why(
    store: Store, texts: list[str], scores: list[float], said: str
) -> None:
    with pytest.raises(UserError, match=r"no pairs: of 3 records 3 were dropped because") as error:
        pair(store, texts, scores)
    assert said in str(error.value)


def test_a_scorer_that_gives_no_number_is_named(store: Store) -> None:
    with pytest.raises(UserError, match="column score: the value nan is out of range"):
        pair(store, ["a", "b"], [math.nan, 0.5])


@pytest.mark.slow
def test_last_good_checkpoint_stays_champion_when_training_diverges(
    finished: tuple[Path, Any, str],
    tmp_path: Path,
    mlflow_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    store = tmp_path / "store"
    shutil.copytree(finished[0], store)
    tracked: dict[str, object] = {"tracking__enabled": True}
    play(quick(store, iterations=0, **tracked))

    def champion() -> str:
        client = MlflowClient(tracking_uri=mlflow_uri)
        version = client.get_model_version_by_alias("hermesflow-quick", "champion")
        return json.dumps([version.version, version.tags["store_uri"]])

    before = champion()
    with pytest.raises(UserError, match=r"training (stopped|ended)"):
        play(quick(store, training__learning_rate=1e30, **tracked))
    assert champion() == before
