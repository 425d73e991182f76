"""The report of a run, in the store beside its artifacts: `reports/seed-<seed>-<key>/`.

Without Prefect, so that `hermesflow report` starts at once and needs no server.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from core.artifact import Artifact
from core.config import Config
from core.errors import UserError
from core.store import Store
from data.tables import read_table
from evals.gate import ANSWER_COLUMNS, paired_changes, type_changes
from report.alarms import Changes
from report.benchmarks import ALL
from report.card import render_card
from report.figures import Figures, read_figures
from report.page import render_page
from report.run_record import RunRecord, Version, from_document
from tracking.runs import BASE, Origin, self_play_key

RUN_RECORD = "run.json"
ANSWERS = "answers/"  # of an evaluation
PAGE = "report.html"
CARD = "README.md"


def report_folder(config: Config, origin: Origin = BASE) -> str:
    """Where the report of a run lies in its store; the same for more or fewer iterations."""
    return f"reports/seed-{config.seed}-{self_play_key(config, origin)[:8]}"


def _origin(run_record: RunRecord) -> Origin:
    first = run_record.versions[0]
    return (
        BASE
        if first.checkpoint == run_record.base
        else Origin(first.label, first.checkpoint.digest)
    )


def keep_run_record(config: Config, store: Store, run_record: RunRecord) -> None:
    """Write down what a run has made so far."""
    text = json.dumps(asdict(run_record), indent=2, sort_keys=True, allow_nan=False)
    store.write_text(f"{report_folder(config, _origin(run_record))}/{RUN_RECORD}", text + "\n")


def figures_of(config: Config, store: Store, run_record: RunRecord) -> Figures:
    """All figures of a run's record with at least its base."""
    first = run_record.versions[0]
    compared = [compare(config, store, first, version) for version in run_record.versions]
    whole = {name: change for (name, group), change in compared[-1].items() if group == ALL}
    changes = whole if len(run_record.versions) > 1 else {}
    return read_figures(store, run_record, changes, compared)


def compare(config: Config, store: Store, first: Version, version: Version) -> Changes:
    """Paired changes of a version against the first, by metric and group; none of the first."""
    if version.checkpoint == first.checkpoint and version.evaluation == first.evaluation:
        return {}
    new, old = (store.open(one.evaluation) for one in (version, first))
    after, before = (
        read_table(one.path("records.parquet"), "record_metrics") for one in (new, old)
    )
    changes = paired_changes(after, before, config.evaluation)
    by_type = type_changes(_answers(new), _answers(old), config.evaluation)
    return {(name, ALL): change for name, change in changes.items()} | by_type


def _answers(evaluation: Artifact) -> pd.DataFrame:
    files = [evaluation.path(name) for name in evaluation.names(ANSWERS)]
    frame: pd.DataFrame = read_table(files, "eval_answers", ANSWER_COLUMNS).to_pandas()
    return frame


def write_report(config: Config, store: Store, figures: Figures) -> str:
    """Write page and model card of a run; the address of the page, as a browser takes it."""
    folder = report_folder(config, _origin(figures.run_record))
    store.write_text(f"{folder}/{CARD}", render_card(figures))
    uri = store.write_text(f"{folder}/{PAGE}", render_page(figures))
    # A folder's name may hold what ends an address, such as "#".
    return Path(uri.removeprefix("file://")).as_uri() if uri.startswith("file://") else uri


def report_on(config: Config, path: str, iterations: int | None) -> str:
    """Write the report of a run that was started with this config (from the file at `path`)."""
    store = Store(config.store)
    run_record = run_record_of(config, store, path)
    if iterations is not None:
        run_record = run_record.up_to(iterations)
    return write_report(config, store, figures_of(config, store, run_record))


def run_record_of(config: Config, store: Store, path: str) -> RunRecord:
    """What the run of a config (from the file at `path`) has made; UserError if there is none."""
    document = store.read_json(f"{report_folder(config)}/{RUN_RECORD}")
    if document is None:
        raise UserError(
            f"{store.uri} has no run of {path} with seed {config.seed} whose base checkpoint has "
            f"been evaluated; start or continue it with hermesflow run {path} "
            f"--seed {config.seed}, or give the config and seed of another run"
        )
    return from_document(document)
