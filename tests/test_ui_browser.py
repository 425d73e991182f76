"""Both UIs of a real run in headless Chromium, served by our own servers."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from selenium import webdriver
from selenium.webdriver.common.by import By

from data.tables import read_table, write_table
from flows.servers import Urls, client_environment, ensure_servers, stop_all
from tests.browser import chromium, requested, resize
from tests.limits import free_port
from tests.loops import QUICK
from tests.screenshots import (
    Document,
    artifacts,
    compare_page,
    flow_runs,
    log_in,
    logged_in,
    open_page,
    open_run,
    take,
    until,
)

# One worker, since all of them look at the runs of one pair of servers.
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("ui")]
ROOT = Path(__file__).parent.parent
PLAY = """
import sys
from flows.self_play import self_play
self_play(config=sys.argv[1], iterations=int(sys.argv[2]), return_state=True)
"""
EVIL = " <script>window.ran = true</script><img src='x' onerror='window.ran = true'>"
STAGES = {
    "sample-captions", "sample-images", "score-captions", "score-images",
    "pair", "reference", "train", "evaluate", "benchmark",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ui")


@pytest.fixture(scope="module")
def urls(folder: Path) -> Iterator[Urls]:
    """Servers with a finished run, one on texts that are not harmless, and a refused one."""
    state = folder / ".hermesflow"
    found = ensure_servers(state, free_port(), free_port())
    config = yaml.safe_load(QUICK.read_text(encoding="utf-8"))
    config["store"] = str(folder / "store")
    play(folder / "good.yaml", config, 3, client_environment(found, state))
    judged = config["evaluation"] | {"judge": "base"}  # the oracle reads shapes only
    hostile = {
        **config, "data": hostile_data(folder), "evaluation": judged, "benchmarks": []
    }  # fmt: skip
    play(folder / "hostile.yaml", hostile, 1, client_environment(found, state))
    config["pairing"]["image"]["min_best"] = 1.0
    play(folder / "bad.yaml", config, 1, client_environment(found, state))
    with logged_in(found):
        yield found
    stop_all(state)


def hostile_data(folder: Path) -> Document:
    """Pool and test set of the finished run, whose prompts and captions would run a script."""
    data: Document = {"source": "parquet"}
    for name in ("pool", "test"):
        rows = read_table(sorted((folder / "store" / name).glob("*/*.parquet")), "pool").to_pylist()
        for row in rows:
            row |= {"prompt": row["prompt"] + EVIL, "caption": row["caption"] + EVIL}
        data[name] = str(folder / f"{name}.parquet")
        write_table(data[name], "pool", rows)
    return data


def play(path: Path, config: Document, iterations: int, environment: dict[str, str]) -> None:
    """Run a self-play in a process of its own, because Prefect reads its settings once."""
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-c", PLAY, str(path), str(iterations)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=True)


@pytest.fixture(scope="module")
def browser(urls: Urls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        log_in(opened, urls)
        resize(opened, 1400, 1000)
        yield opened


@pytest.fixture
def run(urls: Urls) -> Document:
    _, found = flow_runs(urls, "self-play", "COMPLETED")
    return found


def test_what_a_pool_says_is_shown_and_never_run(
    urls: Urls, folder: Path, browser: webdriver.Chrome
) -> None:
    hostile, _ = flow_runs(urls, "self-play", "COMPLETED")
    page = artifacts(urls, hostile)["iteration-1"]["id"]
    reports = (folder / "store/reports").glob("*/report.html")
    [report] = [path for path in reports if "window.ran" in path.read_text(encoding="utf-8")]
    pages = {
        f"{urls.prefect}/artifacts/artifact/{page}": "Winners and losers",
        report.as_uri(): "What it learnt from",
    }
    for address, shows in pages.items():
        text = " ".join(open_page(browser, address, shows).split())
        assert EVIL.strip() in text
        assert browser.execute_script("return window.ran === undefined")
        assert not browser.find_elements(By.CSS_SELECTOR, "img[src='x']")


def test_run_page_shows_what_ran_and_leads_to_its_artifacts(
    urls: Urls, run: Document, browser: webdriver.Chrome
) -> None:
    requested(browser)
    text = open_run(browser, urls, run, "Artifacts", "mlflow")
    assert "self-play shapes seed 0 · 3 iterations" in text
    assert {"from-base", "seed-0", "shapes", "showo"} <= set(text.split())
    for key in ("checkpoints", "iteration-1", "iteration-2", "iteration-3", "mlflow"):
        assert key in text
    hosts = {urlsplit(address).hostname for address in requested(browser)} - {None}
    assert hosts == {"127.0.0.1"}
    log = open_run(browser, urls, run, "Logs", "MLflow run:")
    assert "base, evaluate:" in log


def test_table_and_page_show_the_gap_and_pictures_of_winners_and_losers(
    urls: Urls, run: Document, browser: webdriver.Chrome
) -> None:
    found = artifacts(urls, run)
    place = f"{urls.prefect}/artifacts/artifact/"
    text = open_page(browser, place + found["checkpoints"]["id"], "iteration 3")
    rows = json.loads(found["checkpoints"]["data"])
    assert [row["checkpoint"] for row in rows] == [
        "base", "iteration 1", "iteration 2", "iteration 3",
    ]  # fmt: skip
    for row in rows:
        assert row["gap"] in text
        assert row["images kept"] in text
    text = open_page(browser, place + found["iteration-3"]["id"], "Winners and losers")
    assert "Alarms" in text
    assert "Filters" in text
    images = browser.find_elements(By.CSS_SELECTOR, "img[src^='data:image/png']")
    assert len(images) >= 9
    widths = [browser.execute_script("return arguments[0].naturalWidth", i) for i in images]
    assert set(widths) == {96}


def test_stages_have_one_named_run_and_one_progress_artifact_each(
    urls: Urls, run: Document
) -> None:
    for stage in STAGES:
        children = [
            child
            for child in flow_runs(urls, stage, "COMPLETED")
            if child["start_time"] < run["end_time"]
        ]
        names = [child["name"] for child in children]
        assert len(names) == len(set(names)) == {"evaluate": 4, "benchmark": 8}.get(stage, 3)
        assert all(name.startswith(f"{stage} · ") for name in names)
        newest = children[0]
        assert {"iteration-3", stage, "showo", "shapes"} <= set(newest["tags"])
        [progress] = artifacts(urls, newest).values()
        assert (progress["key"], float(progress["data"])) == (f"{stage}-progress", 100.0)
        assert progress["description"].startswith("iteration 3 · ")


def test_refusing_stage_says_what_to_do_on_its_page_and_on_its_parent_s(
    urls: Urls, browser: webdriver.Chrome
) -> None:
    [stage], [parent] = (flow_runs(urls, flow, "FAILED") for flow in ("pair", "self-play"))
    message = stage["state"]["message"]
    assert message.startswith("no pairs: of 36 records 36 were dropped because their best image")
    assert "pairing.image.min_best = 1.0" in message
    assert message.endswith("lower it")
    assert parent["state"]["message"] == f"iteration 1, stage pair: {message}"
    open_run(browser, urls, parent, "Details", "iteration 1, stage pair: no pairs")
    log = open_run(browser, urls, stage, "Logs", "lower it")
    assert "Traceback" not in log


def test_compare_page_shows_the_gap_of_all_checkpoints(
    urls: Urls, run: Document, browser: webdriver.Chrome
) -> None:
    requested(browser)
    address = compare_page(artifacts(urls, run))
    text = open_page(browser, address, "eval/gap")
    assert "Comparing 4 Runs" in text
    for name in ("base", "iteration 1", "iteration 2", "iteration 3"):
        assert name in text
    # Chosen by the page itself, since it is what the runs differ in.
    chosen = [e.text for e in browser.find_elements(By.CSS_SELECTOR, ".ant-select-selection-item")]
    assert [text for text in chosen if text] == ["iteration", "eval/gap"] or "eval/gap" in text
    hosts = {urlsplit(address).hostname for address in requested(browser)} - {None}
    assert hosts == {"127.0.0.1"}


def test_iteration_has_its_galleries_and_curves_in_mlflow(
    urls: Urls, run: Document, browser: webdriver.Chrome
) -> None:
    page = artifacts(urls, run)["iteration-3"]["data"]
    address = page.partition("[MLflow run](")[2].partition(")")[0]
    assert "Datasets" in open_page(browser, address, "Trained on pairs of")
    open_page(browser, f"{address}/model-metrics", "train/caption")
    open_page(browser, f"{address}/artifacts/galleries/pairs.png", "galleries/pairs.png")
    until(
        lambda: any(
            browser.execute_script("return arguments[0].naturalWidth", image) > 300
            for image in browser.find_elements(By.TAG_NAME, "img")
        )
    )


def test_screenshots_are_taken(urls: Urls, browser: webdriver.Chrome, tmp_path: Path) -> None:
    for path in take(urls, tmp_path, browser):
        assert 20_000 < path.stat().st_size < 300_000
