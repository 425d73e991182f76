"""The pages that terminal and Prefect lead to: what their addresses say, and where they come from.

What a browser shows at them is in test_ui_browser.py.
"""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from mlflow import MlflowClient

from flows import local
from flows.addresses import COMPARED, FLOW, RUNS, Addresses, find_addresses
from flows.logins import clickable_mlflow
from flows.prefect_pages import POLICY, clickable_prefect, prepare_pages
from flows.self_play import self_play
from flows.servers import Urls
from tests.stage_inputs import make_config
from tracking.addresses import VIEW, VIEW_TAG, compare_page, experiments_page, runs_page, runs_view
from tracking.connection import Connection
from tracking.runs import open_tracker

PAGES = "http://127.0.0.1:5000"
RUN = "7f0c3b9e-0000-4000-8000-000000000001"
LOGIN = "hermesflow:a-b_c%/d"


class Prefect(HTTPServer):
    """Answers as Prefect's API does, and keeps what it was asked."""

    runs: list[dict[str, Any]]
    artifacts: list[dict[str, Any]]
    asked: list[tuple[str, Any, str]]

    @property
    def urls(self) -> Urls:
        return Urls(f"http://127.0.0.1:{self.server_port}", PAGES, LOGIN)


class Handler(BaseHTTPRequestHandler):
    server: Prefect

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body, self.headers["Authorization"] or ""))
        known = self.server.runs if "flow_runs" in self.path else self.server.artifacts
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(known).encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def prefect() -> Iterator[Prefect]:
    server = Prefect(("127.0.0.1", 0), Handler)
    server.runs, server.artifacts, server.asked = [], [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def hash_query(address: str) -> dict[str, list[str]]:
    """What MLflow's pages take from an address, which stands behind its #."""
    return parse_qs(urlsplit(address).fragment.partition("?")[2])


def test_every_page_of_mlflow_is_one_for_training() -> None:
    compared = compare_page(PAGES, "3", ["a", "b"])
    for address in (compared, runs_page(PAGES, "3"), experiments_page(PAGES)):
        assert hash_query(address)["workflowType"] == ["machine_learning"]
    assert compared.startswith(f"{PAGES}/#/compare-runs?")
    assert json.loads(hash_query(compared)["runs"][0]) == ["a", "b"]
    assert json.loads(hash_query(compared)["experiments"][0]) == ["3"]
    assert not set(compared) & set(' "[]()')  # so that terminals and Markdown take all of it
    assert runs_page(PAGES, "3").startswith(f"{PAGES}/#/experiments/3/runs?")
    assert hash_query(runs_page(PAGES, "3"))["viewStateShareKey"] == [VIEW]


def test_table_of_runs_has_columns_for_scores_benchmarks_version_and_self_play() -> None:
    view = json.loads(runs_view(["eval/gap"], ["shapes-pope"]))
    shown = [
        "metrics.`eval/gap`",
        "metrics.`benchmark/shapes-pope/f1`",
        "attributes.`Models`",
        "params.`self-play`",
    ]
    assert view["selectedColumns"] == shown
    assert view["columnOrder"][1:] == shown
    assert set(view["columnWidths"]) == set(view["columnOrder"])
    # By anything but the time of start, since MLflow folds nested runs away then.
    assert (view["orderByKey"], view["orderByAsc"]) == ("params.`self-play`", False)


def test_experiment_keeps_its_columns_and_runs_the_self_play_that_they_are_of(
    mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "pages", PAGES)
    config = make_config(tracking__enabled=True)
    with open_tracker(config) as tracker:
        tracker.iteration(0)
        assert tracker.compare_url == ""  # one checkpoint cannot be compared
        tracker.iteration(1)
        runs = json.loads(hash_query(tracker.compare_url)["runs"][0])
    client = MlflowClient(mlflow_uri)
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    assert tracker.runs_url == runs_page(PAGES, experiment.experiment_id)
    assert "eval/gap" in experiment.tags[VIEW_TAG]
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs == [found[name].info.run_id for name in ("base", "iteration 1")]
    [said] = {run.data.params["self-play"] for run in found.values()}
    assert said.endswith(" UTC, self-play shapes seed 0")


def test_pages_are_those_of_the_last_self_play(prefect: Prefect) -> None:
    prefect.runs = [{"id": RUN}]
    compared, runs = compare_page(PAGES, "1", ["a", "b"]), runs_page(PAGES, "1")
    prefect.artifacts = [
        {"key": RUNS, "data": f"[All runs]({runs})"},
        {"key": COMPARED, "data": f"[All checkpoints (of [these])]({compared})"},
    ]
    page = f"{prefect.urls.prefect}/v2/runs/flow-run/{RUN}?tab=Artifacts"
    assert find_addresses(prefect.urls) == Addresses(page, runs, compared)
    (path, asked, login), (_, links, _) = prefect.asked
    assert path == "/api/flow_runs/filter"
    assert asked["flows"]["name"]["any_"] == [FLOW] == [self_play.name]
    assert "SCHEDULED" in asked["flow_runs"]["state"]["type"]["not_any_"]
    assert login.startswith("Basic ")
    assert links["artifacts"]["flow_run_id"]["any_"] == [RUN]

    other = RUN.replace("1", "2")
    prefect.asked.clear()
    assert other in find_addresses(prefect.urls, other).prefect
    assert [path for path, _, _ in prefect.asked] == ["/api/artifacts/filter"]


def test_before_the_first_self_play_pages_are_those_of_all(prefect: Prefect) -> None:
    dashboard = f"{prefect.urls.prefect}/v2/dashboard"
    nothing = Addresses(dashboard, experiments_page(PAGES))
    assert find_addresses(prefect.urls) == nothing
    gone = Urls("http://127.0.0.1:9", PAGES)
    assert find_addresses(gone, RUN) == Addresses(f"{gone.prefect}/v2/dashboard", nothing.runs)


def test_login_goes_into_the_address_and_the_page_stays() -> None:
    page = "http://127.0.0.1:4200/v2/runs/flow-run/1?tab=Artifacts"
    assert clickable_prefect(page, "") == page
    assert clickable_prefect(page, LOGIN) == (
        "http://127.0.0.1:4200/open.html#hermesflow:a-b_c%25%2Fd/v2/runs/flow-run/1?tab=Artifacts"
    )
    assert clickable_mlflow(runs_page(PAGES, "1"), "") == runs_page(PAGES, "1")
    address = clickable_mlflow(runs_page(PAGES, "1"), "hermesflow:pw")
    assert address.startswith("http://hermesflow:pw@127.0.0.1:5000/open#/experiments/1/runs?")


def test_terminal_shows_pages_and_the_login_goes_to_our_servers_alone(
    prefect: Prefect, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prefect.artifacts = [
        {"key": RUNS, "data": f"[All runs]({runs_page('http://mlflow.elsewhere', '1')})"},
        {"key": COMPARED, "data": f"[Checkpoints]({compare_page(PAGES, '1', ['a', 'b'])})"},
    ]
    urls = Urls(prefect.urls.prefect, PAGES, "hermesflow:pw")
    monkeypatch.setattr(local, "known_urls", lambda: urls)
    local._show(urls, RUN)
    plain = capsys.readouterr().out
    assert "hermesflow:pw" not in plain
    assert f"{urls.prefect}/v2/runs/flow-run/{RUN}?tab=Artifacts" in plain
    assert "/#/compare-runs?" in plain

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    local._show(urls, RUN)
    lines = capsys.readouterr().out.splitlines()
    assert f"/open.html#hermesflow:pw/v2/runs/flow-run/{RUN}" in lines[0]
    assert "http://hermesflow:pw@127.0.0.1:5000/open#/compare-runs?" in lines[1]
    assert lines[2].endswith(f" {runs_page('http://mlflow.elsewhere', '1')}")


def test_pages_of_prefect_connect_to_this_machine_alone(tmp_path: Path) -> None:
    for version in ("v1", "v2"):
        (tmp_path / "prefect/ui" / version).mkdir(parents=True)
        index = tmp_path / "prefect/ui" / version / "index.html"
        index.write_text("<html><head><title>x</title></head></html>", encoding="utf-8")
    for _ in range(2):  # once, however often
        prepare_pages(tmp_path)
        assert index.read_text(encoding="utf-8").count(POLICY) == 1
    assert (tmp_path / "prefect/ui/v1/open.html").is_file()
