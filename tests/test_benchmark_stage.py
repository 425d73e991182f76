"""Benchmarks as stages: shares, files that change, settings that are refused, paired changes."""

from pathlib import Path

import benchmark_files as made
import pandas as pd
import pyarrow as pa
import pytest
import yaml

from core.benchmarks import BENCHMARKS
from core.config import Config, load_config
from core.errors import UserError
from core.stage import Shard, run_shard, run_stage
from core.store import Store
from data.results import read_result
from data.tables import read_table
from evals.benchmarks.changes import benchmark_change
from tasks.base import BASE
from tasks.benchmark import BENCHMARK, alone
from tests.evaluations import items_table
from tests.llm_server import endpoint
from tests.loops import QUICK, quick
from tests.stage_inputs import make_config

PROJECT = Path(__file__).parent.parent
EVALUATION = make_config().evaluation


def chosen(name: str, folder: Path | None = None, **judges: str) -> dict[str, object]:
    given = {"name": name, "folder": str(folder) if folder else None}
    return given | {"limit": None, "judges": judges}


def test_shares_make_what_one_run_makes(tmp_path: Path) -> None:
    config = alone(quick(tmp_path / "store"), "shapes-pope")
    both, whole = Store(str(tmp_path / "both")), Store(str(tmp_path / "whole"))
    base = run_stage(BASE, config, both, {}).ref
    inputs = {"checkpoint": base}
    assert run_shard(BENCHMARK, config, both, inputs, Shard(1, 2)) is None
    done = run_shard(BENCHMARK, config, both, inputs, Shard(0, 2))
    assert done is not None
    assert done.ref.digest == run_stage(BENCHMARK, config, whole, inputs).ref.digest
    rows = read_table(both.open(done.ref).path("items.parquet"), "benchmark_items").to_pylist()
    assert 40 <= len(rows) <= 48
    assert {row["group"] for row in rows} == {"random", "popular", "adversarial"}
    assert sum(row["answer"] == "yes" for row in rows) * 2 == len(rows)
    assert both.open(done.ref).manifest["results"]["items"] == len(rows)


def test_a_benchmark_of_published_files_is_scored_and_its_files_are_in_the_key(
    tmp_path: Path,
) -> None:
    store, data = Store(str(tmp_path / "store")), made.pope(tmp_path)
    config = quick(store.uri, benchmarks=[chosen("pope", data)])
    inputs = {"checkpoint": run_stage(BASE, config, store, {}).ref}
    first = run_stage(BENCHMARK, config, store, inputs)
    assert run_stage(BENCHMARK, config, store, inputs).cached
    result = read_result(store.open(first.ref).path())
    assert (result.benchmark, result.number) == ("pope", 12)
    assert result.recipe["system"]["checkpoint"] == inputs["checkpoint"].digest
    file = next(data.glob("*pope_random.json"))
    file.write_text(file.read_text().replace("yes", "no"), encoding="utf-8")
    again = run_stage(BENCHMARK, config, store, inputs)
    assert not again.cached
    terms = [store.open(done.ref).manifest["results"]["terms"] for done in (first, again)]
    assert terms[0] != terms[1]
    file.unlink()
    with pytest.raises(UserError, match=r"benchmark pope: folder .* has no file \*pope_random"):
        run_stage(BENCHMARK, config, store, inputs)


def test_limit_takes_whole_units_of_all_groups(tmp_path: Path) -> None:
    config = quick(
        tmp_path / "store", benchmarks=[chosen("mme", made.mme(tmp_path)) | {"limit": 7}]
    )
    store = Store(config.store)
    base = run_stage(BASE, config, store, {}).ref
    ref = run_stage(BENCHMARK, config, store, {"checkpoint": base}).ref
    rows = read_table(store.open(ref).path("items.parquet"), "benchmark_items").to_pandas()
    assert (rows.groupby("unit")["item_id"].count() == 2).all()
    assert len(rows) == 6
    assert rows["group"].nunique() == 3


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (chosen("pope"), "pope has folder = null; give the folder with its published files"),
        (chosen("shapes-pope", Path("x")), "reads no files; set folder: null"),
        (chosen("geneval", Path("x"), clip="c"), r"judges clip; set judges: .*detector: \.\.\."),
        (chosen("dpg", Path("x"), judge="endpoint"), "evaluation.endpoint is null"),
        (chosen("pop"), "shapes-geneval"),
    ],
)
def test_settings_that_cannot_work_are_refused(entry: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_config(QUICK, {"benchmarks": [entry]})


def test_shapes_benchmarks_need_the_shapes_world_and_names_are_unique() -> None:
    twice = [chosen("shapes-pope")] * 2
    with pytest.raises(UserError, match="shapes-pope twice"):
        load_config(QUICK, {"benchmarks": twice})
    data = {"source": "parquet", "pool": "a", "test": "b"}
    with pytest.raises(UserError, match=r"asks about shapes.*take it out"):
        load_config(QUICK, {"data": data, "evaluation.judge": "base"})


def test_commented_benchmarks_of_shipped_configs_are_valid() -> None:
    text = (PROJECT / "configs/show_o_512.yaml").read_text(encoding="utf-8")
    lines = text.partition("benchmarks: []\n")[2].splitlines()
    block = [line[1:] for line in lines[: lines.index("")]]
    entries = yaml.safe_load("\n".join(block))
    judge = endpoint("http://localhost:8000/v1").model_dump()
    config: Config = load_config(QUICK, {"benchmarks": entries, "evaluation.endpoint": judge})
    assert {entry.name for entry in config.benchmarks} == {
        n for n in BENCHMARKS if BENCHMARKS[n].files
    }


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_change_of_every_headline_is_paired_and_signed(name: str) -> None:
    """All right against half right: a loss beyond its interval; equal results: none."""
    good, half = items_table(name, 1.0), items_table(name, 0.5)
    change = benchmark_change(name, half, good, EVALUATION)
    assert change.before > change.after
    assert change.change.value == pytest.approx(change.after - change.before)
    assert change.change.low <= change.change.value <= change.change.high < 0
    same = benchmark_change(name, half, half, EVALUATION).change
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_items_that_only_one_has_scored_are_left_out() -> None:
    good = items_table("pope", 1.0)
    rows = good.to_pandas()
    lost = rows.assign(status=["no image" if unit < "2" else "answered" for unit in rows["unit"]])
    half = items_table("pope", 0.5).to_pandas()
    change = benchmark_change(
        "pope", pa.Table.from_pandas(lost), pa.Table.from_pandas(half), EVALUATION
    )
    kept = half[lost["status"] == "answered"]
    assert change.change.count == kept["unit"].nunique()
    nothing = pd.DataFrame(rows.assign(status="no image"))
    with pytest.raises(UserError, match="no item was scored in both"):
        benchmark_change("pope", pa.Table.from_pandas(nothing), good, EVALUATION)
