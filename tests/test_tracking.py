"""Tracking: runs are continued and never doubled, and MLflow may be away or go away."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from core.artifact import ArtifactRef
from core.config import Config
from tests.evaluations import metrics
from tests.stage_inputs import make_config
from tracking.connection import PAGES, Connection
from tracking.metric_log import metric_name
from tracking.runs import InputTable, Origin, metric_values, open_tracker

CURVES = [
    {"step": 1, "loss": 0.7, "caption/margin": 0.0},
    {"step": 2, "loss": 0.6, "caption/margin": 0.1},
]
REF = ArtifactRef("pair", "k", "file:///store/pair/k", "d1")


def tracked(**changes: object) -> Config:
    return make_config(tracking__enabled=True, **changes)


def self_play(config: Config, iterations: int = 1, curves: list[dict[str, float]] = CURVES) -> None:
    with open_tracker(config) as tracker:
        for index in range(iterations + 1):
            with tracker.iteration(index) as run:
                if index:
                    run.log_curves(curves)
                    run.log_values({"pairs/share kept": 0.25})
                    run.log_refs({"pairs": REF})
                run.log_metrics(metrics(0.9, 0.7 + index / 10))
                run.log_benchmark("pope", metrics(0.9, 0.7))


def all_runs(uri: str) -> dict[str, Run]:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    names = [run.info.run_name for run in found]
    assert len(names) == len(set(names))
    return {run.info.run_name: run for run in found}


def steps(uri: str, run: Run, name: str) -> list[tuple[int, float]]:
    history = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, name)
    return sorted((metric.step, metric.value) for metric in history)


def test_one_parent_and_one_nested_run_an_iteration(mlflow_uri: str) -> None:
    self_play(tracked(), iterations=2)
    found = all_runs(mlflow_uri)
    assert set(found) == {"self-play shapes seed 0", "base", "iteration 1", "iteration 2"}
    parent, child = found["self-play shapes seed 0"], found["iteration 2"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.info.status == parent.info.status == "FINISHED"
    assert child.data.tags["pairs.uri"] == REF.uri
    assert child.data.tags["pairs.digest"] == "d1"
    values = child.data.metrics
    assert values["eval/understanding"] == 0.9
    assert values["eval_interval/gap.low"] == pytest.approx(-0.02)
    assert values["eval_interval/all_right.high"] == pytest.approx(0.47)
    assert values["eval_quality/all_right"] == pytest.approx(0.45)
    assert values["eval_by_category/all_right.single_object"] == pytest.approx(0.45)
    assert values["eval_by_composition/generation.held-out"] == pytest.approx(0.8)
    assert values["benchmark/pope/generation"] == pytest.approx(0.7)
    assert values["benchmark/pope/generation.composition.held-out"] == pytest.approx(0.6)
    assert values["pairs/share kept"] == 0.25
    assert set(found["base"].data.metrics) < set(values)
    assert steps(mlflow_uri, parent, "eval/generation") == [
        (index, pytest.approx(0.7 + index / 10)) for index in range(3)
    ]


def test_config_is_logged_as_parameters_and_as_a_file(mlflow_uri: str) -> None:
    self_play(tracked())
    for run in all_runs(mlflow_uri).values():
        assert run.data.params["training.learning_rate"] == "0.001"
        assert run.data.params["data.source"] == "shapes"
        assert json.loads(run.data.params["sampling.captions.settings"])[0]["num_samples"] == 2
        client = MlflowClient(tracking_uri=mlflow_uri)
        path = client.download_artifacts(run.info.run_id, "config.yaml")
        assert "bootstrap_samples: 100" in Path(path).read_text(encoding="utf-8")


def test_repeated_self_play_adds_no_run_and_no_point(mlflow_uri: str) -> None:
    self_play(tracked())
    before = all_runs(mlflow_uri)
    self_play(tracked())
    # More iterations on another device continue the same self-play.
    self_play(tracked(iterations=2, runtime__batch_records=9), iterations=2)
    after = all_runs(mlflow_uri)
    assert set(after) - set(before) == {"iteration 2"}
    for name, run in before.items():
        assert after[name].info.run_id == run.info.run_id
        assert after[name].info.status == "FINISHED"
    child = after["iteration 1"]
    assert steps(mlflow_uri, child, "train/loss") == [(1, 0.7), (2, 0.6)]
    assert steps(mlflow_uri, child, "eval/understanding") == [(0, 0.9)]
    parent = after["self-play shapes seed 0"]
    assert len(steps(mlflow_uri, parent, "eval/gap")) == 3
    assert parent.data.params["runtime.batch_records"] == "3"


def test_killed_run_continues_its_curves_where_they_end(mlflow_uri: str) -> None:
    self_play(tracked(), curves=CURVES[:1])
    with open_tracker(tracked()) as tracker, tracker.iteration(1) as run:
        run.log_curves(CURVES[:1])
        run.log_curves(CURVES)
    child = all_runs(mlflow_uri)["iteration 1"]
    assert steps(mlflow_uri, child, "train/caption/margin") == [(1, 0.0), (2, 0.1)]


def test_point_that_has_changed_is_logged_again(mlflow_uri: str) -> None:
    self_play(tracked())
    self_play(tracked(), curves=[CURVES[0], {**CURVES[1], "loss": 0.5}])
    child = all_runs(mlflow_uri)["iteration 1"]
    assert steps(mlflow_uri, child, "train/loss") == [(1, 0.7), (2, 0.5), (2, 0.6)]


def test_another_setting_is_another_self_play(mlflow_uri: str) -> None:
    with open_tracker(tracked()) as first, open_tracker(tracked(seed=1)) as second:
        assert first.run_id != second.run_id
    with open_tracker(tracked(training__epochs=3)) as third:
        assert third.run_id not in (first.run_id, second.run_id)


def test_failing_iteration_is_shown_as_failed(mlflow_uri: str) -> None:
    with (
        pytest.raises(RuntimeError, match="boom"),
        open_tracker(tracked()) as tracker,
        tracker.iteration(1),
    ):
        raise RuntimeError("boom")
    found = all_runs(mlflow_uri)
    assert {run.info.status for run in found.values()} == {"FAILED"}


def test_without_tracking_nothing_is_said_or_done(caplog: pytest.LogCaptureFixture) -> None:
    self_play(make_config())
    assert caplog.records == []


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("", "MLFLOW_TRACKING_URI is not set"),
        ("http://127.0.0.1:9", "no MLflow server answers at MLFLOW_TRACKING_URI = http://127"),
        ("nonsense:///x", "MLFLOW_TRACKING_URI = nonsense:///x"),
    ],
)
def test_absent_server_gives_one_warning_with_the_way_out(
    uri: str, problem: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    self_play(tracked(), iterations=2)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert problem in record.getMessage()
    assert "hermesflow up" in record.getMessage()
    assert not open_tracker(tracked()).enabled


def test_server_lost_on_the_way_gives_one_warning_and_the_next_run_fills_in(
    mlflow_uri: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, open_tracker(tracked()) as tracker:
        with tracker.iteration(1) as run:
            run.log_curves(CURVES[:1])
            patch.setattr(MlflowClient, "log_batch", _gone)
            run.log_curves(CURVES)
            run.log_metrics(metrics(0.9, 0.8))
        assert not tracker.enabled
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "failed (the server is gone); the run goes on without it" in record.getMessage()
    self_play(tracked())
    child = all_runs(mlflow_uri)["iteration 1"]
    assert steps(mlflow_uri, child, "train/loss") == [(1, 0.7), (2, 0.6)]
    assert child.data.metrics["eval/generation"] == pytest.approx(0.8)


def _gone(*args: object, **options: object) -> None:
    raise MlflowException("the server is gone\nand a long trace")


def test_charts_and_compare_page_begin_with_the_gap_and_every_metric_has_a_name() -> None:
    """MLflow sorts sections by name, and compares by the first metric that was logged."""
    names = list(metric_values(metrics(0.9, 0.8)))
    assert names[:3] == ["eval/gap", "eval/understanding", "eval/generation"]
    sections = {name.rpartition("/")[0] for name in names}
    assert min(sections | {"pairs", "quality", "train", "trained"}) == "eval"
    assert "eval_by_type/understanding.color" not in names
    assert "eval_by_type/generation.color" in names
    assert not any(name.endswith(("/", ".")) for name in names)
    assert metric_name("train/caption/rewards/margins") == "train/caption/rewards.margins"
    assert metric_name("all_right/a+b") == "all_right/a_b"


def test_nested_runs_differ_in_one_parameter_their_iteration(mlflow_uri: str) -> None:
    self_play(tracked())
    self_play(tracked(iterations=2), iterations=2)
    found = all_runs(mlflow_uri)
    base, last = (found[name].data.params for name in ("base", "iteration 2"))
    assert {name for name in base | last if base.get(name) != last.get(name)} == {"iteration"}
    assert last["iteration"] == "2"


def test_pictures_are_drawn_once_for_each_state(mlflow_uri: str) -> None:
    drawn: list[bytes] = []

    def draw(content: bytes) -> bytes:
        drawn.append(content)
        return content

    for source, content in (("a", b"1"), ("a", b"2"), ("ab", b"3"), ("a", b"4"), ("c", b"5")):
        with open_tracker(tracked()) as tracker:
            tracker.log_picture("plots/gap.png", source, lambda c=content: draw(c))  # type: ignore[misc]
    assert drawn == [b"1", b"3", b"5"]
    path = MlflowClient(tracking_uri=mlflow_uri).download_artifacts(tracker.run_id, "plots/gap.png")
    assert Path(path).read_bytes() == b"5"


def test_tables_become_datasets_with_their_digests(mlflow_uri: str) -> None:
    table = InputTable("pool", "sampling", replace(REF, digest="d" * 64), "pool", 7)
    for _ in range(2):
        with open_tracker(tracked()) as tracker, tracker.iteration(1) as run:
            run.log_inputs([table])
    [given] = all_runs(mlflow_uri)["iteration 1"].inputs.dataset_inputs
    dataset = given.dataset
    assert (dataset.name, dataset.digest) == ("pool", "d" * 36)
    assert json.loads(dataset.source) == {"uri": REF.uri}
    assert json.loads(dataset.profile) == {"num_rows": 7, "digest": "d" * 64}
    columns = {c["name"]: c["type"] for c in json.loads(dataset.schema)["mlflow_colspec"]}
    assert columns["image"] == "binary"
    assert columns["questions"] == "array"
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "sampling")]


def test_run_from_a_champion_is_another_self_play(mlflow_uri: str) -> None:
    origin = Origin("champion 3", "d" * 64)
    with open_tracker(tracked()) as base, open_tracker(tracked(), origin) as other:
        assert base.run_id != other.run_id
        other.iteration(0)
    with open_tracker(tracked(), origin) as again:
        assert again.run_id == other.run_id
    assert {"self-play shapes seed 0 from champion 3", "champion 3"} <= set(all_runs(mlflow_uri))


def test_links_lead_to_where_people_open_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = Connection(None, "http://mlflow:5000/")
    assert inside.pages == "http://mlflow:5000"
    monkeypatch.setenv(PAGES, "http://localhost:5000/")
    assert inside.pages == "http://localhost:5000"
    assert Connection(None, "sqlite:///x.db").pages == ""
