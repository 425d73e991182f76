"""Pictures of the last finished self-play on the local servers: `make screenshots`.

Also how browser tests find their way through the two UIs.
"""

import base64
import io
import json
import os
import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

from flows.addresses import run_page
from flows.containers import lead_there
from flows.logins import client_login
from flows.servers import Urls, known_urls
from tests.browser import chromium, resize
from tracking.browser_login import OPEN

PATIENCE = 40.0
SETTLE = 2.0  # seconds that a page gets to draw its charts
COLORS = 256
Document = dict[str, Any]


def ask(address: str, body: object = None) -> Any:
    """The JSON answer to a POST, or without a body to a GET."""
    content = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **login_headers()}
    request = urllib.request.Request(address, content, headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
        return json.load(reply)


def login_headers() -> dict[str, str]:
    """What servers that ask for a login are told, who are both told the same."""
    login = os.environ.get("PREFECT_API_AUTH_STRING", "")
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}


@contextmanager
def logged_in(urls: Urls) -> Iterator[None]:
    """Let clients in this process log in to these servers."""
    with patch.dict(os.environ, client_login(urls.login)):
        yield


def log_in(browser: webdriver.Chrome, urls: Urls) -> None:
    """Say who we are with every request, and to both pages as if one click had led there."""
    send_login(browser)
    headers = login_headers()
    if headers:
        browser.get(urls.prefect)
        token = headers["Authorization"].removeprefix("Basic ")
        browser.execute_script("localStorage.setItem('prefect-password', arguments[0])", token)
        browser.get(f"{urls.mlflow}/{OPEN}")  # which servers in containers lack


def send_login(browser: webdriver.Chrome) -> None:
    """Say who we are with every request, as browsers do that have asked for a password."""
    headers = login_headers()
    if headers:
        browser.execute_cdp_cmd("Network.enable", {})
        browser.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": headers})


def flow_runs(urls: Urls, flow: str, state: str) -> list[Document]:
    """Runs of a flow that ended in a state, the newest first."""
    body = {
        "flows": {"name": {"any_": [flow]}},
        "flow_runs": {"state": {"type": {"any_": [state]}}},
        "sort": "START_TIME_DESC",
    }
    found: list[Document] = ask(f"{urls.prefect_api}/flow_runs/filter", body)
    return found


def artifacts(urls: Urls, run: Document) -> dict[str, Document]:
    """The artifacts of a flow run by key; a key stands for one artifact."""
    body = {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}}
    found = ask(f"{urls.prefect_api}/artifacts/filter", body)
    by_key = {artifact["key"]: artifact for artifact in found}
    assert len(by_key) == len(found)
    return by_key


def open_run(browser: webdriver.Chrome, urls: Urls, run: Document, tab: str, shows: str) -> str:
    """Open a tab of a flow run's page; everything that it shows."""
    return open_page(browser, run_page(urls, run["id"], tab.replace(" ", "")), shows)


def compare_page(found: dict[str, Document]) -> str:
    """Address that the page of the last iteration leads to."""
    last = max(key for key in found if key.startswith("iteration-"))
    links = re.findall(r"\((http[^)]+/compare-runs[^)]+)\)", found[last]["data"])
    return str(links[0])


def open_page(browser: webdriver.Chrome, address: str, shows: str) -> str:
    """Open a page and wait until it shows a text; everything that it shows."""
    browser.get("about:blank")  # or another place of the same page would not be loaded
    browser.get(address)
    return wait_for(browser, shows)


def wait_for(browser: webdriver.Chrome, shows: str) -> str:
    """Wait until the page shows a text; everything that it shows."""

    def text() -> str:
        return browser.find_element(By.TAG_NAME, "body").text

    until(lambda: shows in text())
    return text()


def until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < deadline, "the page does not show what it should"
        time.sleep(0.3)


def save(browser: webdriver.Chrome, path: Path) -> None:
    """Save what is seen, in few colours, which these pages get by with."""
    time.sleep(SETTLE)
    with Image.open(io.BytesIO(browser.get_screenshot_as_png())) as image:
        image.convert("RGB").quantize(COLORS).save(path, optimize=True)


def take(
    urls: Urls, folder: Path, browser: webdriver.Chrome, *, containers: bool = False
) -> list[Path]:
    """Both pictures of the last finished run; in containers, of the runs that it submitted."""
    run = flow_runs(urls, "self-play", "COMPLETED")[0]
    prefix = "containers-" if containers else ""
    places = [folder / f"{prefix}{name}.png" for name in ("prefect-run", "mlflow-compare")]
    log_in(browser, urls)
    resize(browser, 1400, 1000)
    if containers:
        open_run(browser, urls, run, "Subflow Runs", "shard 1 of")
    else:
        open_run(browser, urls, run, "Artifacts", "checkpoints")
    save(browser, places[0])
    resize(browser, 1600, 1000)
    open_page(browser, compare_page(artifacts(urls, run)), "eval/gap")
    save(browser, places[1])
    return places


def main(folder: str) -> None:
    """Take both pictures into a folder."""
    containers = lead_there()
    urls = containers or known_urls()
    if urls is None:
        sys.exit("error: no servers run here; hermesflow run or hermesflow up starts them")
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (
        logged_in(urls),
        tempfile.TemporaryDirectory() as profile,
        chromium(Path(profile)) as browser,
    ):
        print(*take(urls, Path(folder), browser, containers=containers is not None), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1])
