"""Registering: the gate decides, the reason is on record, and nothing is registered twice."""

import io
import logging
import shutil
from hashlib import sha256
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from PIL import Image

from core.artifact import ArtifactRef
from core.config import Config
from core.errors import UserError
from core.files import sha256_of
from core.store import Store
from data.tables import write_table
from flows.registration import Registration
from tests.evaluations import items_table, publish_checkpoint, publish_evaluation, records, register
from tests.limits import ROOT, run_python
from tests.showo_tiny import tiny_model
from tests.stage_inputs import make_config
from tracking.publishing import Scores
from tracking.runs import open_tracker

HALF, RIGHT, WRONG = [0.0, 1.0] * 20, [1.0] * 40, [0.0] * 40
Values = tuple[list[float], list[float]]
BASE: Values = (HALF, HALF)
BETTER: Values = (HALF, RIGHT)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    return folder


def tracked(**changes: object) -> Config:
    return make_config(tracking__enabled=True, **changes)


def checkpoint(
    store: Store, name: str, scores: Values, folder: Path | None = None, **settings: object
) -> tuple[ArtifactRef, Scores]:
    """A checkpoint and its scores."""
    ref = publish_checkpoint(store, name, folder)
    return ref, Scores(publish_evaluation(store, records(*scores), ref, settings))


def versions(uri: str) -> list[ModelVersion]:
    client = MlflowClient(tracking_uri=uri)
    found = client.search_model_versions("name = 'test'")
    return sorted(found, key=lambda version: int(version.version))


def aliases(uri: str) -> dict[str, str]:
    client = MlflowClient(tracking_uri=uri)
    return {str(k): str(v) for k, v in client.get_registered_model("test").aliases.items()}


def test_first_version_becomes_champion_and_a_better_one_replaces_it(
    mlflow_uri: str, store: Store
) -> None:
    base, base_evaluation = checkpoint(store, "base", BASE)
    with open_tracker(tracked()) as tracker, tracker.iteration(0) as run:
        first = register(
            tracked(), store, base, base_evaluation, None, run_id=run.run_id, registry=run.registry
        )
    assert (first.promoted, first.reason, first.version) == (True, "first version", "1")
    assert aliases(mlflow_uri) == {"candidate": "1", "champion": "1"}

    better, evaluation = checkpoint(store, "better", BETTER)
    second = register(tracked(), store, better, evaluation, base_evaluation)
    assert second.promoted
    assert second.reason.startswith("promoted: G changed by +0.500")
    assert aliases(mlflow_uri) == {"candidate": "2", "champion": "2"}
    third = register(tracked(), store, *checkpoint(store, "worse", (WRONG, HALF)), base_evaluation)
    assert not third.promoted
    assert aliases(mlflow_uri) == {"candidate": "3", "champion": "2"}

    found = versions(mlflow_uri)
    assert found[0].run_id == run.run_id
    tags = found[1].tags
    assert tags["store_uri"] == better.uri
    assert tags["sha256"] == sha256_of(store.open(better).path("model/model.safetensors"))
    assert (tags["understanding"], tags["generation"], tags["gap"]) == (
        *("0.5000", "1.0000", "-0.5000"),
    )
    assert tags["reason"] == second.reason
    assert tags["evaluation_uri"] == evaluation.evaluation.uri
    assert tags["compared_with"] == base_evaluation.evaluation.uri
    assert found[1].description.startswith(second.reason)
    assert "U 0.5000, G 1.0000" in found[1].description


def test_same_checkpoint_is_registered_once_for_each_gate(mlflow_uri: str, store: Store) -> None:
    base = checkpoint(store, "base", BASE)
    better = checkpoint(store, "better", BETTER)
    register(tracked(), store, *base, None)
    first = register(tracked(), store, *better, base[1])
    again = register(tracked(), store, *better, base[1])
    assert again == first
    assert register(tracked(), store, *base, None).version == "1"
    assert aliases(mlflow_uri) == {"candidate": "2", "champion": "2"}
    assert len(versions(mlflow_uri)) == 2
    other = register(tracked(gate__min_generation_gain=0.1), store, *better, base[1])
    # A version says nothing about itself, so it is not compared with its own evaluation.
    assert (other.version, other.promoted) == ("3", True)
    assert other.reason == "the champion already, version 2, judged anew"


def test_version_of_a_killed_registration_gets_its_aliases(
    mlflow_uri: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = checkpoint(store, "base", BASE)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MlflowClient, "set_registered_model_alias", _interrupt)
        register(tracked(), store, *base, None)
    assert register(tracked(), store, *base, None).version == "1"
    assert aliases(mlflow_uri) == {"candidate": "1", "champion": "1"}


def _interrupt(*args: object) -> None:
    raise KeyboardInterrupt


def test_deleted_registry_is_filled_again_from_cached_decisions(
    mlflow_uri: str, mlflow_database: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, better = checkpoint(store, "base", BASE), checkpoint(store, "better", BETTER)

    def both() -> list[Registration]:
        return [
            register(tracked(), store, *base, None),
            register(tracked(), store, *better, base[1]),
        ]

    before = both()
    shutil.copyfile(mlflow_database, "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    after = both()
    assert after == before
    assert len(list(Path(store.root).glob("gate/*"))) == 2
    assert [done.version for done in after] == ["1", "2"]
    assert aliases("sqlite:///other.db") == {"candidate": "2", "champion": "2"}


@pytest.mark.parametrize("how", ["gone", "other records", "other settings"])
def test_champion_that_cannot_be_compared_gives_way_to_the_base_of_the_run(
    mlflow_uri: str, store: Store, how: str
) -> None:
    champion = publish_checkpoint(store, "champion")
    table = records(RIGHT, RIGHT, prefix="x" if how == "other records" else "r")
    settings = {"evaluation": {"judge": "base"}} if how == "other settings" else {}
    evaluation = publish_evaluation(store, table, champion, settings)
    register(tracked(), store, champion, Scores(evaluation), None)
    if how == "gone":
        shutil.rmtree(store.open(evaluation).path())

    base, better = checkpoint(store, "base", BASE), checkpoint(store, "better", BETTER)
    first = register(tracked(), store, *base, None)
    assert not first.promoted
    second = register(tracked(), store, *better, base[1])
    assert second.promoted
    expected = {
        "gone": "is gone",
        "other records": "was made on other records",
        "other settings": "differs from this one: evaluation.judge 'base' instead of 'oracle'",
    }[how]
    assert first.reason.startswith("not promoted: not compared with anything, since the evaluation")
    assert "compared with the base evaluation of this run" in second.reason
    for done in (first, second):
        assert f"the champion, version 1, {expected}" in done.reason
    # From here on the champion is comparable again.
    assert (
        "compared with"
        not in register(
            tracked(), store, *checkpoint(store, "last", (RIGHT, RIGHT)), base[1]
        ).reason
    )


@pytest.mark.parametrize("enabled", [True, False])
def test_without_mlflow_the_gate_is_judged_all_the_same(
    store: Store, enabled: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = make_config(tracking__enabled=enabled)
    base, better = checkpoint(store, "base", BASE), checkpoint(store, "better", BETTER)
    first = register(config, store, *base, None)
    assert (first.promoted, first.reason, first.version) == (True, "first version", None)
    second = register(config, store, *better, base[1])
    assert (second.promoted, second.version) == (True, None)
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert bool(warned) == enabled


LOADED = """
import mlflow, pandas as pd
from PIL import Image
model = mlflow.pyfunc.load_model("models:/test@champion")
request = {"task": "caption", "image": Image.new("RGB", (16, 16)), "num_samples": 2}
print(len(model.predict(pd.DataFrame([request]))["captions"][0]))
"""


@pytest.mark.slow
def test_champion_is_loaded_in_a_fresh_process_elsewhere(
    mlflow_uri: str, store: Store, model_folder: Path, tmp_path: Path
) -> None:
    register(tracked(), store, *checkpoint(store, "tiny", BASE, model_folder), None)
    for name in ("core", "data", "models"):  # as in projects that have folders of these names
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError", encoding="utf-8")
    # As where the package is installed.
    environment = {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": mlflow_uri}
    done = run_python("-c", LOADED, cwd=tmp_path, **environment)
    assert done.stdout == "2\n", done.stderr
    assert f"HermesFlow's package hides {tmp_path}/models/__init__.py" in done.stderr


def test_champion_captions_answers_and_generates(
    mlflow_uri: str, store: Store, model_folder: Path, tmp_path: Path
) -> None:
    import mlflow

    register(tracked(), store, *checkpoint(store, "tiny", BASE, model_folder), None)
    model = mlflow.pyfunc.load_model("models:/test@champion")
    picture = Image.new("RGB", (16, 16), (255, 0, 0))
    picture.save(tmp_path / "red.png")
    done = model.predict(
        pd.DataFrame(
            [
                {"task": "caption", "image": str(tmp_path / "red.png"), "num_samples": 2},
                {"task": "answer", "image": picture, "question": "red?", "choices": ["a", "mat"]},
                {"task": "generate", "prompt": "a red cat", "num_samples": 2, "seed": 3},
            ]
        )
    )
    assert len(done["captions"][0]) == 2
    assert done["choice"][1] == ["a", "mat"][int(done["probabilities"][1][0] < 0.5)]
    assert sum(done["probabilities"][1]) == pytest.approx(1)
    assert [Image.open(io.BytesIO(png)).size for png in done["images"][2]] == [(64, 64)] * 2
    assert done["images"][0] is None
    # Neither weights nor pickles are copied.
    kept = [path for path in tmp_path.rglob("mlruns/**/*") if path.is_file()]
    assert kept
    assert max(path.stat().st_size for path in kept) < 20_000
    assert not [path for path in kept if path.suffix in (".pkl", ".safetensors")]


def test_loaded_model_reads_bytes_and_names_bad_requests(
    mlflow_uri: str, store: Store, model_folder: Path
) -> None:
    import mlflow

    register(tracked(), store, *checkpoint(store, "tiny", BASE, model_folder), None)
    model = mlflow.pyfunc.load_model("models:/test@champion", model_config={"device": "cpu"})
    buffer = io.BytesIO()
    Image.new("L", (30, 20)).save(buffer, format="JPEG")
    first, second = (
        model.predict(pd.DataFrame([{"task": "caption", "image": buffer.getvalue()}], index=[7]))
        for _ in range(2)
    )
    assert len(first["captions"][7]) == 1
    assert first.equals(second)
    for request, expected in (
        ({"task": "draw"}, r"row 0: task = 'draw' is unknown; give one of caption, answer"),
        ({"task": "caption"}, "row 0: image is missing; task 'caption' needs it"),
        ({"task": "caption", "image": b"x"}, "row 0: image = '1 bytes' cannot be read"),
        ({"task": "generate", "prompt": " "}, "row 0: prompt = ' ' is no text"),
        (
            {"task": "generate", "prompt": "a", "num_samples": 0},
            "row 0: num_samples = 0 is out of range; give a whole number from 1",
        ),
        (
            {"task": "answer", "image": buffer.getvalue(), "question": "a", "choices": "yes"},
            "row 0: choices = 'yes' are no choices",
        ),
    ):
        with pytest.raises(UserError, match=expected):
            model.predict(pd.DataFrame([request]))


def test_checkpoint_that_is_gone_or_changed_is_refused(
    mlflow_uri: str, store: Store, model_folder: Path, tmp_path: Path
) -> None:
    import mlflow

    ref, evaluation = checkpoint(store, "tiny", BASE, model_folder)
    register(tracked(), store, ref, evaluation, None)
    folder = store.open(ref).path()
    moved = shutil.move(folder, tmp_path / "moved")
    with pytest.raises(UserError, match="the registered checkpoint cannot be opened: no artifact"):
        mlflow.pyfunc.load_model("models:/test@champion")
    mlflow.pyfunc.load_model("models:/test@champion", model_config={"uri": str(moved)})
    weights = moved / "model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(UserError, match="has changed: its digest is"):
        mlflow.pyfunc.load_model("models:/test@champion", model_config={"uri": str(moved)})


def benchmark(store: Store, right: float, terms: str = "same", name: str = "pope") -> ArtifactRef:
    """A result of a benchmark of which a share of items is right."""
    key = sha256(repr((right, terms, name)).encode()).hexdigest()
    with store.draft("benchmark", key) as draft:
        with draft.write("items.parquet") as path:
            write_table(path, "benchmark_items", items_table(name, right))
        return draft.publish({"results": {"name": name, "terms": terms}})


def test_loss_at_a_benchmark_blocks_the_promotion(mlflow_uri: str, store: Store) -> None:
    base, evaluation = checkpoint(store, "base", BASE)
    before = Scores(evaluation.evaluation, [benchmark(store, 1.0)])
    register(tracked(), store, base, before, None)
    better, evaluation = checkpoint(store, "better", BETTER)
    fallen = Scores(evaluation.evaluation, [benchmark(store, 0.0)])
    done = register(tracked(), store, better, fallen, before)
    assert not done.promoted
    assert done.reason.startswith("not promoted: G changed by +0.500")
    assert done.reason.endswith("; pope f1 from 1 to 0, by -1 [-1, -1], a loss beyond its interval")
    assert aliases(mlflow_uri) == {"candidate": "2", "champion": "1"}
    # The same with as good a result; and the champion's own is what the next is held against.
    kept = Scores(evaluation.evaluation, [benchmark(store, 1.0, name="pope")])
    done = register(tracked(), store, better, kept, before)
    assert done.promoted
    assert "pope f1 from 1 to 1, by 0 [0, 0], no loss beyond its interval" in done.reason
    assert aliases(mlflow_uri)["champion"] == done.version


def test_benchmarks_of_other_terms_are_named_and_not_compared(
    mlflow_uri: str, store: Store
) -> None:
    base, evaluation = checkpoint(store, "base", BASE)
    results = [benchmark(store, 1.0), benchmark(store, 1.0, name="mme")]
    register(tracked(), store, base, Scores(evaluation.evaluation, results), None)
    better, evaluation = checkpoint(store, "better", BETTER)
    others = [benchmark(store, 0.0, terms="other"), benchmark(store, 1.0, name="dpg")]
    done = register(tracked(), store, better, Scores(evaluation.evaluation, others), None)
    assert done.promoted
    assert done.reason.endswith("only one was scored: pope, dpg, mme")


def test_champion_whose_benchmark_is_gone_is_compared_without(
    mlflow_uri: str, store: Store
) -> None:
    base, evaluation = checkpoint(store, "base", BASE)
    result = benchmark(store, 1.0)
    register(tracked(), store, base, Scores(evaluation.evaluation, [result]), None)
    shutil.rmtree(store.open(result).path())
    better, evaluation = checkpoint(store, "better", BETTER)
    scores = Scores(evaluation.evaluation, [benchmark(store, 0.0)])
    done = register(tracked(), store, better, scores, None)
    assert done.promoted
    assert done.reason.endswith("only one was scored: pope")
