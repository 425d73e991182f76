"""Both UIs of a real run in headless Chromium, served by our own servers."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from data.tables import read_table, write_table
from flows.addresses import COMPARED, RUNS, run_page
from flows.logins import clickable_mlflow
from flows.prefect_pages import clickable_prefect
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
    send_login,
    take,
    until,
    wait_for,
)
from tracking.addresses import experiments_page

# One worker, since all of them look at the runs of one pair of servers.
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("ui")]
ROOT = Path(__file__).parent.parent
PLAY = """
import sys
from flows.self_play import self_play
self_play(config=sys.argv[1], iterations=int(sys.argv[2]), return_state=True)
"""
EVIL = " <script>window.ran = true</script><img src='x' onerror='window.ran = true'>"
# What stands in the place of a host in addresses of a new tab and of pictures within a page.
BROWSER_S_OWN = {None, "resources", "new-tab-page-third-party", "favicon2"}
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
    config["model"]["checkpoint"] = str(ROOT / config["model"]["checkpoint"])
    config["scoring"]["caption_encoder"] = str(ROOT / config["scoring"]["caption_encoder"])
    (folder / "good.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    told = on_terminal(folder, "run", "good.yaml", "--iterations", "3")
    (folder / "told").write_text(told, encoding="utf-8")
    # The oracle reads shapes only, and the model does not know most of what these texts say.
    hostile = {
        **config,
        "data": hostile_data(folder),
        "evaluation": config["evaluation"] | {"judge": "base"},
        "scoring": config["scoring"] | {"require_fit": False},
        "benchmarks": [],
    }
    play(folder / "hostile.yaml", hostile, 1, client_environment(found, state))
    config["pairing"]["image"]["min_best"] = 1.0
    play(folder / "bad.yaml", config, 1, client_environment(found, state))
    with logged_in(found):
        yield found
    stop_all(state)


def on_terminal(folder: Path, *arguments: str) -> str:
    """What a command of ours says where somebody looks at it and the servers are of `folder`."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-P", "-m", "flows.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=theirs) as process:
        os.close(theirs)
        said = b""
        while chunk := _read(ours):
            said += chunk
    os.close(ours)
    assert process.returncode == 0
    return said.decode().replace("\r", "")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 10_000)
    except OSError:  # nobody writes to it any more
        return b""


@pytest.fixture
def told(urls: Urls, folder: Path) -> dict[str, str]:
    """The addresses that the terminal showed at the end of the finished run, by their titles."""
    text = (folder / "told").read_text(encoding="utf-8")
    return dict(re.findall(r"^(\w+ UI[^:]*): +(http\S+)$", text, re.MULTILINE))


@contextmanager
def fresh_browser(profile: Path) -> Iterator[webdriver.Chrome]:
    """A browser that has never been anywhere, and that nobody has logged in."""
    with chromium(profile) as opened:
        resize(opened, 1400, 1000)
        yield opened
        asked = {urlsplit(address).hostname for address in requested(opened)} - BROWSER_S_OWN
        assert asked == {"127.0.0.1"}


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
        f"{urls.prefect}/v2/artifacts/artifact/{page}": "Winners and losers",
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
    assert set(run["tags"]) == {"from-base", "seed-0", "shapes", "showo"}
    assert len(set(run["tags"]) & set(text.split())) == 3  # and "+1"
    keys = ("checkpoints", "iteration-1", "iteration-2", "iteration-3", RUNS, COMPARED)
    for key in keys:
        assert key in text
    assert set(artifacts(urls, run)) == set(keys)
    hosts = {urlsplit(address).hostname for address in requested(browser)} - {None}
    assert hosts == {"127.0.0.1"}
    log = open_run(browser, urls, run, "Logs", "MLflow run:")
    assert "base, evaluate:" in log


def test_table_and_page_show_the_gap_and_pictures_of_winners_and_losers(
    urls: Urls, run: Document, browser: webdriver.Chrome
) -> None:
    found = artifacts(urls, run)
    place = f"{urls.prefect}/v2/artifacts/artifact/"
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


def test_address_of_prefect_on_the_terminal_opens_the_run_at_its_artifacts(
    urls: Urls, run: Document, told: dict[str, str], tmp_path: Path
) -> None:
    with fresh_browser(tmp_path) as browser:
        browser.get(told["Prefect UI"])
        text = wait_for(browser, "mlflow-compared")
        assert "self-play shapes seed 0 · 3 iterations" in text
        for key in ("checkpoints", "iteration-1", "iteration-2", "iteration-3", "mlflow-runs"):
            assert key in text
        assert browser.current_url == f"{urls.prefect}/v2/runs/flow-run/{run['id']}?tab=Artifacts"


def test_address_of_prefect_asks_for_the_login_and_leads_on(
    urls: Urls, run: Document, tmp_path: Path
) -> None:
    """As it is printed where no terminal is; which tab was meant is forgotten by Prefect's form."""
    with fresh_browser(tmp_path) as browser:
        open_page(browser, run_page(urls, run["id"]), "Login")
        field = browser.find_element(By.CSS_SELECTOR, "input[type=password]")
        field.send_keys(urls.login, Keys.ENTER)
        wait_for(browser, "self-play shapes seed 0 · 3 iterations")


@pytest.mark.parametrize("page", ["//localhost:9/x", "/\\localhost:9/x", "/javascript:x=1"])
def test_login_leads_to_pages_of_the_same_server_alone(
    urls: Urls, tmp_path: Path, page: str
) -> None:
    with fresh_browser(tmp_path) as browser:
        browser.get(clickable_prefect(urls.prefect, urls.login) + page)
        wait_for(browser, "Dashboard")
        assert urlsplit(browser.current_url).netloc == urlsplit(urls.prefect).netloc


def test_address_of_mlflow_on_the_terminal_compares_all_checkpoints(
    told: dict[str, str], tmp_path: Path
) -> None:
    with fresh_browser(tmp_path) as browser:
        browser.get(told["MLflow UI, all checkpoints"])
        text = wait_for(browser, "eval/gap")
        assert "Comparing 4 Runs" in text
        for name in ("base", "iteration 1", "iteration 2", "iteration 3"):
            assert name in text
        assert shows_pages_for_training(browser)
        assert "@" not in browser.current_url  # or no page could ask for its data


def test_address_of_mlflow_on_the_terminal_shows_all_runs_with_their_scores(
    told: dict[str, str], tmp_path: Path
) -> None:
    with fresh_browser(tmp_path) as browser:
        browser.get(told["MLflow UI, all runs"])
        text = wait_for(browser, "eval/gap")
        # Of the finished run, and of the others that were started after it.
        for name in (
            "base",
            "iteration 1",
            "iteration 2",
            "iteration 3",
            "self-play shapes seed 0",
        ):
            assert name in text
        assert "Sort: self-play" in text
        assert "hermesflow-quick" in text
        headers = browser.find_elements(By.CSS_SELECTOR, ".ag-header-cell")
        shown = {header.text.strip() for header in headers}
        assert {"eval/gap", "eval/understanding", "eval/generation"} <= shown
        assert shows_pages_for_training(browser)
        assert "@" not in browser.current_url


def test_addresses_of_mlflow_alone_say_which_pages_are_meant(
    urls: Urls, run: Document, tmp_path: Path
) -> None:
    """As links of Prefect lead there, in a browser that has asked for the password itself."""
    found = artifacts(urls, run)
    with fresh_browser(tmp_path) as browser:
        send_login(browser)
        for key, shows in ((COMPARED, "Comparing 4 Runs"), (RUNS, "Sort: self-play")):
            address = found[key]["data"].partition("](")[2].removesuffix(")")
            open_page(browser, address, shows)
            assert shows_pages_for_training(browser)


def test_without_a_run_pages_are_still_those_for_training(urls: Urls, tmp_path: Path) -> None:
    with fresh_browser(tmp_path) as browser:
        address = clickable_mlflow(experiments_page(urls.mlflow), urls.login)
        assert "hermesflow-quick" in open_page(browser, address, "hermesflow-quick")
        assert shows_pages_for_training(browser)


def shows_pages_for_training(browser: webdriver.Chrome) -> bool:
    """Whether MLflow shows what it has for models, and not for applications of language models."""
    text = browser.find_element(By.TAG_NAME, "body").text
    return "Model registry" in text and not {"AI Gateway", "Evaluation runs"} & set(
        text.split("\n")
    )


def test_iteration_has_its_galleries_and_curves_in_mlflow(
    urls: Urls, run: Document, browser: webdriver.Chrome
) -> None:
    page = artifacts(urls, run)["iteration-3"]["data"]
    address = page.partition("[MLflow run](")[2].partition(")")[0]
    assert "Datasets" in open_page(browser, address, "Trained on pairs of")
    place, _, query = address.partition("?")
    open_page(browser, f"{place}/model-metrics?{query}", "train/caption")
    open_page(browser, f"{place}/artifacts/galleries/pairs.png?{query}", "galleries/pairs.png")
    until(
        lambda: any(
            browser.execute_script("return arguments[0].naturalWidth", image) > 300
            for image in browser.find_elements(By.TAG_NAME, "img")
        )
    )


def test_screenshots_are_taken(urls: Urls, browser: webdriver.Chrome, tmp_path: Path) -> None:
    for path in take(urls, tmp_path, browser):
        assert 20_000 < path.stat().st_size < 300_000
