"""The whole loop on a few records, stage by stage without servers."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from core.artifact import Artifact
from core.config import Config
from core.stage import run_stage
from core.store import Store
from data.tables import read_table
from evals.vqa import LEAST_PROBABILITY
from tasks.sample import CAPTIONS, IMAGES
from tasks.score import SCORE_IMAGES
from tests.janus_tiny import random_janus
from tests.loops import Commands, Finished, Runner, play, quick, quick_exact
from tests.vila_u_tiny import random_vila_u

BENCHMARKS = [{"name": "shapes-pope", "folder": None, "limit": 12, "judges": {}}]


def digests(runner: Runner) -> list[tuple[str, int, str]]:
    return [(name, iteration, result.ref.digest) for name, iteration, result in runner.done]


def test_table_shows_every_checkpoint(finished: Finished) -> None:
    _, _, table = finished
    assert "base" in table
    assert "iteration 2" in table
    assert "understanding" in table
    assert "position" in table


def test_second_run_finds_every_stage_in_the_store(finished: Finished) -> None:
    """Also with other settings of runtime."""
    store, first, table = finished
    again, same = play(quick(store, iterations=2, runtime__batch_records=7))
    assert again.fresh() == []
    assert digests(again) == digests(first)
    assert same == table


def test_a_knob_redoes_the_stages_that_read_it_and_those_after_them(copied: Path) -> None:
    runner, _ = play(quick(copied, training__objective__image__beta=0.11))
    assert runner.fresh() == ["train", "evaluate", "benchmark", "benchmark", "gate"]


def test_a_pairing_knob_leaves_samples_and_scores_alone(copied: Path) -> None:
    runner, _ = play(quick(copied, pairing__image__min_best=0.31, benchmarks=[]))
    assert "sample-images" not in runner.fresh()
    assert "pair" in runner.fresh()


@pytest.mark.slow
def test_more_iterations_continue_where_the_last_run_ended(copied: Path) -> None:
    runner, _ = play(quick(copied, iterations=3))
    stages = {name for name, _, _ in runner.done} - {"pool", "test", "base", "fit", "judge"}
    fresh = {(name, i) for name, i, result in runner.done if not result.cached}
    assert fresh == {(name, 3) for name in stages}
    assert len(stages) == 10


def test_samples_do_not_depend_on_batch_size(finished: Finished, tmp_path: Path) -> None:
    """Beyond rounding, which may turn a draw that falls on a boundary."""
    config, store = quick(tmp_path / "store", runtime__batch_records=5), Store(f"{tmp_path}/store")
    refs = {name: result.ref for name, _, result in reversed(finished[1].done)}
    inputs = {"checkpoint": refs["base"], "pool": refs["pool"]}
    for stage, table, column in ((CAPTIONS, "captions", "text"), (IMAGES, "images", "tokens")):
        other = run_stage(stage, config, store, inputs).ref
        one, two = (
            read_table(Artifact(ref.uri).parts(), table) for ref in (refs[stage.name], other)
        )
        assert one["record_id"] == two["record_id"]
        pairs = zip(one[column].to_pylist(), two[column].to_pylist(), strict=True)
        assert sum(a == b for a, b in pairs) >= 0.99 * one.num_rows


@pytest.mark.slow
@pytest.mark.parametrize("family", ["showo", "janus", "vila_u"])
def test_stages_in_processes_of_their_own_make_the_artifacts_of_one_process(
    tmp_path: Path, family: str
) -> None:
    def config(store: str) -> Config:
        if family == "showo":
            return quick(tmp_path / store, benchmarks=BENCHMARKS)
        return quick_exact(tmp_path / store, family, tmp_path / family, benchmarks=BENCHMARKS)

    random_janus().save_pretrained(tmp_path / "janus")
    random_vila_u().save_pretrained(tmp_path / "vila_u")
    apart, _ = play(config("apart"), runner=Commands())
    together, _ = play(config("together"))
    assert digests(apart) == digests(together)
    assert {"pool", "base", "train", "benchmark"} <= {name for name, _, _ in apart.done}
    assert len(apart.done) == 18


def scored(finished: Finished, store: Path, **changes: object) -> pa.Table:
    """Scores of the images of the first iteration."""
    config = quick(store, **changes)
    refs = {stage: result.ref for stage, _, result in reversed(finished[1].done)}
    refs |= {"images": refs["sample-images"], "checkpoint": refs["base"]}
    inputs = {name: refs[name] for name in SCORE_IMAGES.inputs}
    ref = run_stage(SCORE_IMAGES, config, Store(str(store)), inputs).ref
    return read_table(Artifact(ref.uri).parts(), "image_scores")


def test_scores_are_the_means_of_the_stored_answers(finished: Finished, tmp_path: Path) -> None:
    table = scored(finished, tmp_path / "store")
    for row in table.to_pylist():
        probabilities = np.array([answer["probability"] for answer in row["answers"]])
        right = [answer["prediction"] == answer["answer"] for answer in row["answers"]]
        assert row["hard"] == pytest.approx(np.mean(right))
        assert row["soft"] == pytest.approx(probabilities.mean())
        floored = np.maximum(probabilities, LEAST_PROBABILITY)
        assert row["geometric"] == pytest.approx(np.exp(np.log(floored).mean()))
    for changes in ({"scoring__answer_by": "decoding"}, {"scoring__judge": "oracle"}):
        other = scored(finished, tmp_path / "store", **changes)
        assert other["hard"].to_pylist() == pytest.approx(other["soft"].to_pylist())
        assert not other.equals(table)


def test_own_pool_runs_with_the_base_checkpoint_as_judge(copied: Path, tmp_path: Path) -> None:
    """A user's Parquet files take the place of the built-in world."""
    runner, _ = play(quick(copied))
    refs = {name: result.ref for name, _, result in runner.done}
    files = {}
    for name in ("pool", "test"):
        files[name] = tmp_path / f"{name}.parquet"
        shutil.copyfile(Store(str(copied)).open(refs[name]).parts()[0], files[name])
    data = {"source": "parquet", "pool": str(files["pool"]), "test": str(files["test"])}
    own, table = play(quick(copied, data=data, evaluation__judge="base", benchmarks=[]))
    assert "evaluate" in own.fresh()
    assert "generation" in table
    [page] = [
        page
        for path in copied.glob("reports/*/report.html")
        if "frozen base checkpoint" in (page := path.read_text(encoding="utf-8"))
    ]
    assert "judged by the pixel oracle" not in page
    assert "That drawing improved is not shown" in page or "nobody else looked" in page
