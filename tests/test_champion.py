"""Starting from the registry's champion: found, verified, and an input like any other."""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from core.config import Config
from core.errors import UserError
from core.store import Store
from tests.evaluations import publish_checkpoint, publish_evaluation, records, register
from tests.loops import Finished, play, quick
from tests.stage_inputs import make_config
from tracking.champion import Champion, find_champion
from tracking.publishing import Scores

SCORES = [0.0, 1.0] * 20


def tracked() -> Config:
    return make_config(tracking__enabled=True)


@pytest.fixture
def champion(mlflow_uri: str, tmp_path: Path) -> Champion:
    store = Store(str(tmp_path / "store"))
    checkpoint = publish_checkpoint(store, "base")
    evaluation = publish_evaluation(store, records(SCORES, SCORES), checkpoint)
    register(tracked(), store, checkpoint, Scores(evaluation), None)
    return Champion("1", checkpoint)


def test_champion_is_found_with_its_checkpoint(champion: Champion) -> None:
    assert find_champion(tracked()) == champion
    assert champion.label == "champion 1"


def test_champion_that_is_gone_changed_or_of_nobody_is_refused(
    champion: Champion, tmp_path: Path, mlflow_uri: str
) -> None:
    path = Path(champion.checkpoint.uri.removeprefix("file://"), "model/model.safetensors")
    path.write_text("esab", encoding="utf-8")
    with pytest.raises(UserError, match=r"version 1 has changed: .* registered was"):
        find_champion(tracked())
    (tmp_path / "store").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"version 1 cannot be opened: .*; restore the store, or"):
        find_champion(tracked())
    MlflowClient(tracking_uri=mlflow_uri).delete_model_version_tag("test", "1", "digest")
    with pytest.raises(UserError, match="version 1 is unknown, since the version has no tag"):
        find_champion(tracked())


def test_a_registry_with_a_champion_is_needed(
    mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"tracking\.enabled = false"):
        find_champion(make_config())
    with pytest.raises(UserError, match="'test' has no version with the alias champion; run a"):
        find_champion(tracked())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="no registry answers"):
        find_champion(tracked())


def test_run_from_a_champion_samples_from_it_and_judges_against_it(
    finished: Finished, tmp_path: Path
) -> None:
    """Iteration 1 of a run that starts where another's iteration 1 ended, with fresh pairs."""
    store = tmp_path / "store"
    shutil.copytree(finished[0], store)
    config = quick(store)
    refs = {(n, i): r.ref for n, i, r in finished[1].done}
    trained = Store(config.store).find("train", refs["train", 1].key)
    assert trained is not None
    runner, table = play(config, Champion("3", trained))
    assert "champion 3" in table
    done = {(name, i): result for name, i, result in runner.done}
    # The samples of that checkpoint are those of the other run's second iteration.
    assert done["sample-images", 1].ref.digest == refs["sample-images", 2].digest
    assert done["sample-images", 1].cached
    assert done["evaluate", 0].cached
    pair = Store(config.store).open(done["pair", 1].ref).manifest
    assert pair["inputs"]["previous"] == []
    training = Store(config.store).open(done["train", 1].ref).manifest
    assert training["inputs"]["checkpoint"][0]["digest"] == trained.digest
    assert ("gate", 0) not in done
