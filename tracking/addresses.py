"""Addresses of MLflow's pages that show the right thing to a browser that has never been there.

MLflow begins with its pages for applications of language models, and with an empty overview of
their traces, unless the address says that models are trained here. Written for MLflow 3.17.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

from core.benchmarks import BENCHMARKS
from tracking.metric_log import metric_name

WORKFLOW = "workflowType=machine_learning"
# What a table of runs shows is a tag of the experiment, which an address names by its end.
VIEW = "checkpoints"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
SELF_PLAY = "self-play"  # the parameter that says which self-play a run is of
NAME = "attributes.`Run Name`"
MODELS = "attributes.`Models`"
PIXELS = {NAME: 200, MODELS: 200, f"params.`{SELF_PLAY}`": 270}
NARROW, WIDE = 90, 190  # pixels of a metric's column


def experiments_page(pages: str) -> str:
    """All experiments of the server whose pages begin at `pages`."""
    return f"{pages}/#/experiments?{WORKFLOW}"


def runs_page(pages: str, experiment: str) -> str:
    """The table of an experiment's runs, nested ones too, with the columns of `runs_view`."""
    return f"{pages}/#/experiments/{experiment}/runs?{WORKFLOW}&viewStateShareKey={VIEW}"


def run_page(pages: str, experiment: str, run: str) -> str:
    """One run."""
    return f"{pages}/#/experiments/{experiment}/runs/{run}?{WORKFLOW}"


def compare_page(pages: str, experiment: str, runs: Sequence[str]) -> str:
    """The comparison of runs."""
    chosen, experiments = (
        quote(json.dumps(ids, separators=(",", ":"))) for ids in (list(runs), [experiment])
    )
    return f"{pages}/#/compare-runs?runs={chosen}&experiments={experiments}&{WORKFLOW}"


def runs_view(metrics: Sequence[str], benchmarks: Sequence[str]) -> str:
    """The value of VIEW_TAG: these metrics, the main figure of each benchmark, version, self-play.

    Sorted by self-play, the newest first: MLflow folds nested runs away when it sorts by time.
    """
    figures = [f"benchmark/{name}/{BENCHMARKS[name].headline}" for name in benchmarks]
    shown = [f"metrics.`{metric_name(name)}`" for name in (*metrics, *figures)]
    shown += [MODELS, f"params.`{SELF_PLAY}`"]
    return json.dumps(
        {
            "selectedColumns": shown,
            "columnOrder": [NAME, *shown],
            "columnWidths": {name: PIXELS.get(name) or _pixels(name) for name in (NAME, *shown)},
            "orderByKey": f"params.`{SELF_PLAY}`",
            "orderByAsc": False,
        }
    )


def _pixels(column: str) -> int:
    """Wide enough for the title of a column, if that is not long."""
    return min(max(NARROW, 8 * len(column) - 60), WIDE)
