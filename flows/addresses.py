"""The pages that a terminal leads to: of a self-play, or where there is none yet, of all of them.

What Prefect shows of a run leads to MLflow already, so that its server alone is asked, and nothing
has to be imported for that.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.request import Request

from core.proxies import open_url
from flows.servers import Urls
from tracking.addresses import experiments_page

FLOW = "self-play"
RUNS, COMPARED = "mlflow-runs", "mlflow-compared"  # artifacts of a self-play that lead to MLflow
WAITING = ["SCHEDULED", "PENDING"]  # states of a flow run that has nothing to show
SECONDS = 5.0


@dataclass(frozen=True)
class Addresses:
    """Pages worth a look; `compared` is empty before there are two checkpoints."""

    prefect: str
    runs: str
    compared: str = ""


def find_addresses(urls: Urls, flow_run: str = "") -> Addresses:
    """Pages of this self-play, or of the one that was started last.

    Those of all runs if the server does not answer or knows of none.
    """
    dashboard = f"{urls.prefect}/v2/dashboard"
    try:
        flow_run = flow_run or _newest(urls)
        links = _links(urls, flow_run) if flow_run else {}
    except (OSError, ValueError):
        flow_run, links = "", {}
    return Addresses(
        run_page(urls, flow_run) if flow_run else dashboard,
        links.get(RUNS) or experiments_page(urls.mlflow),
        links.get(COMPARED, ""),
    )


def run_page(urls: Urls, flow_run: str, tab: str = "Artifacts") -> str:
    """A flow run at a tab of its page; those are the pages that Prefect opens by itself."""
    return f"{urls.prefect}/v2/runs/flow-run/{flow_run}?tab={tab}"


def _newest(urls: Urls) -> str:
    found = _ask(
        urls,
        "flow_runs",
        {
            "flows": {"name": {"any_": [FLOW]}},
            "flow_runs": {"state": {"type": {"not_any_": WAITING}}},
            "sort": "START_TIME_DESC",
            "limit": 1,
        },
    )
    return str(found[0]["id"]) if found else ""


def _links(urls: Urls, flow_run: str) -> dict[str, str]:
    """Where the run's artifacts lead, by their keys."""
    wanted = {"flow_run_id": {"any_": [flow_run]}, "key": {"any_": [RUNS, COMPARED]}}
    found = _ask(urls, "artifacts", {"artifacts": wanted})
    return {one["key"]: re.sub(r"^\[.*\]\((.*)\)$", r"\1", one["data"]) for one in found}


def _ask(urls: Urls, what: str, wanted: dict[str, object]) -> list[dict[str, Any]]:
    headers = {"Content-Type": "application/json"}
    if urls.login:
        headers["Authorization"] = f"Basic {base64.b64encode(urls.login.encode()).decode()}"
    body = json.dumps(wanted).encode()
    request = Request(f"{urls.prefect_api}/{what}/filter", body, headers)
    with open_url(request, timeout=SECONDS) as reply:
        found: list[dict[str, Any]] = json.load(reply)
    return found
