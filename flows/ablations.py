"""`hermesflow ablations`: the loop with parts of it changed or left out, over several seeds.

Every run is an ordinary self-play on the shared store, so that a killed study continues and runs
share what they have in common. Runs go side by side in processes of one thread each, which on two
cores is faster than one run with two. Writes the figures and a section of docs/results.md.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import traceback
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from core.command import moved
from core.config import Config, load_config
from core.errors import UserError
from core.progress import progress
from core.settings import Section, load_settings
from core.stage import StageResult
from core.store import Store
from data.tables import read_table
from flows.executors.base import InProcess, Job
from flows.preflight import check
from report.ablations import figure, replace_section, section
from tasks.evaluate import EVALUATE

LOGS = Path(".hermesflow/ablations")
DOCS = Path("docs")
QUICK_CONFIG = "tests/configs/quick.yaml"

Row = dict[str, object]
Change = bool | int | float | str | None | dict[str, Any]


class Arm(Section):
    """One way to run the loop."""

    name: str = Field(pattern=r"^[a-z_]+$", description="short name, used in files")
    title: str = Field(min_length=1, description="how the tables call it")
    changes: dict[str, Change] = Field(
        description="values, or whole sections, by dotted path of the config"
    )


class Study(Section):
    """Arms that differ from one config, each over all seeds."""

    config: str = Field(min_length=1, description="config that the arms change")
    iterations: int = Field(ge=1, description="self-play iterations of each run")
    seeds: list[int] = Field(min_length=1, description="seeds of self-play")
    arms: list[Arm] = Field(
        min_length=1, max_length=20, description="what is compared, the first against others"
    )


def run_study(path: str, workers: int, quick: bool, split: str | None, out: Path | None) -> None:
    """Run all arms of a study and write what came out, into `out` if it is given and else to docs.

    `quick` takes a few records, to see it work; `split` replaces that of the config.
    """
    changes: dict[str, object] = {}
    if quick:
        changes = {"config": QUICK_CONFIG, "iterations": 1, "seeds": [0, 1]}
    study = load_settings(path, Study, changes)
    shared: dict[str, object] = {"data.eval_split": split} if split else {}
    table = run_all(arm_configs(study, shared), workers)
    write_results(Path(path).stem, study, table, out or (LOGS / "quick" if quick else None))


def arm_configs(study: Study, shared: Mapping[str, object]) -> dict[tuple[str, int], Config]:
    """The config of every run; UserError for an arm that is not valid, before any work."""
    fixed = {"iterations": study.iterations, "tracking.enabled": False, "runtime.threads": 1}
    configs = {}
    # A seed of all arms after the other, so that a study cut short still compares.
    for seed in study.seeds:
        for arm in study.arms:
            try:
                overrides = {**fixed, **shared, **arm.changes, "seed": seed}
                configs[arm.name, seed] = load_config(study.config, overrides)
            except UserError as error:
                raise UserError(f"arm {arm.name}: {error}") from None
    return configs


def run_all(configs: Mapping[tuple[str, int], Config], workers: int) -> pd.DataFrame:
    """Metrics of all runs: arm, seed, iteration, name, group, value, low, high."""
    # Absolute, since the pool's processes start where this one was started.
    logs = LOGS.absolute()
    logs.mkdir(parents=True, exist_ok=True)
    for arm, config in {arm: config for (arm, _), config in configs.items()}.items():
        try:
            check(config)  # seeds change nothing that it looks at
        except UserError as error:
            raise UserError(f"arm {arm}: {error}") from None
    # The pool's processes read it when they start; torch would take every core in each of them.
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    context = multiprocessing.get_context("spawn")
    rows: list[Row] = []
    with (
        ProcessPoolExecutor(workers, context) as pool,
        progress("ablations", len(configs)) as bar,
    ):
        waiting: dict[Future[list[Row]], tuple[str, int]] = {
            pool.submit(run_one, config, arm, seed, logs): (arm, seed)
            for (arm, seed), config in configs.items()
        }
        for done in as_completed(waiting):
            arm, seed = waiting[done]
            try:
                rows += done.result()
            except UserError as error:
                pool.shutdown(wait=False, cancel_futures=True)
                raise UserError(f"arm {arm}, seed {seed}: {error}") from None
            bar.update()
    table = pd.DataFrame(rows)
    return table.sort_values(["arm", "seed", "iteration", "group", "name"], ignore_index=True)


def run_one(config: Config, arm: str, seed: int, logs: Path) -> list[Row]:
    """One self-play without servers, its output in a log; the metrics of all its checkpoints."""
    from flows.self_play import SelfPlay
    from tracking.runs import open_tracker

    executor = _Remembering()
    with (
        open(logs / f"{arm}-{seed}.log", "a", encoding="utf-8") as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        logging.basicConfig(stream=log, level=logging.INFO, force=True)
        try:
            with open_tracker(config) as tracker:
                SelfPlay(config, tracker, executor).run()
        except Exception:
            traceback.print_exc(file=log)
            raise
    store = Store(config.store)
    return [
        {"arm": arm, "seed": seed, "iteration": iteration, **row}
        for iteration, result in executor.evaluations.items()
        for row in read_table(store.open(result.ref).path("metrics.parquet"), "metrics").to_pylist()
    ]


class _Remembering(InProcess):
    """Runs jobs in this process, and remembers the evaluation of each iteration."""

    def __init__(self) -> None:
        self.evaluations: dict[int, StageResult] = {}

    def run(self, job: Job) -> StageResult | None:
        result = super().run(job)
        if job.stage is EVALUATE and result is not None:
            self.evaluations[job.step.iteration] = result
        return result


def write_results(name: str, study: Study, table: pd.DataFrame, out: Path | None) -> None:
    """Table, figure and section under the name of the study, in docs or in another folder."""
    titles = {arm.name: arm.title for arm in study.arms}
    csv = (out or DOCS) / f"{name}.csv"
    picture = (out or DOCS / "images") / f"{name}.png"
    results = (out or DOCS) / "results.md"
    picture.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(csv, index=False, float_format="%.5f")
    figure(table, titles, picture)
    link = os.path.relpath(picture, results.parent)
    text = section(table, titles, link)
    known = results.read_text(encoding="utf-8") if results.exists() else "# Results\n"
    results.write_text(replace_section(known, name, text), encoding="utf-8")
    print(f"\n{text}\nwritten: {results}, {picture}, {csv}")


if __name__ == "__main__":
    moved("ablations")
