"""The report in a browser: what is there, no error, no request, no sideways scrolling."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from core.store import Store
from flows.reporting import report_folder
from report.figures import Figures, read_figures
from report.page import render_page
from report.run_record import from_document
from tests.browser import chromium, requested, resize
from tests.loops import Finished, quick

pytestmark = pytest.mark.browser
EVIL = "<script>window.evil = 1</script><img src=x onerror='window.evil = 1'>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def figures(finished: Finished) -> Figures:
    config = quick(finished[0], iterations=2)
    store = Store(config.store)
    document = store.read_json(f"{report_folder(config)}/run.json")
    assert document is not None
    return read_figures(store, from_document(document), {})


@pytest.fixture
def page(finished: Finished, browser: webdriver.Chrome) -> str:
    """The page of the run is open; its address."""
    config = quick(finished[0], iterations=2)
    address = Path(finished[0], report_folder(config), "report.html").as_uri()
    open_page(browser, address)
    return address


def open_page(browser: webdriver.Chrome, address: str) -> None:
    browser.get_log("browser")
    requested(browser)
    resize(browser, 1200)
    browser.get(address)


def sideways(browser: webdriver.Chrome) -> int:
    """By how many pixels the page is wider than its window."""
    overflow: int = browser.execute_script(
        "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
    )
    return overflow


def test_pictures_and_charts_have_a_size(page: str, browser: webdriver.Chrome) -> None:
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('img, svg')].map(item => [item.tagName, "
        "item.tagName == 'IMG' ? item.naturalWidth : item.getBoundingClientRect().width])"
    )
    assert {tag for tag, _ in sizes} == {"IMG", "svg"}
    assert all(width > 0 for _, width in sizes)


def test_nothing_is_asked_for_and_nothing_complains(page: str, browser: webdriver.Chrome) -> None:
    asked = [
        address for address in requested(browser) if not address.startswith(("data:", "chrome"))
    ]
    assert asked == [page]
    loaded = browser.execute_script("return performance.getEntriesByType('resource').length")
    assert loaded == 0
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [390, 1200])
def test_page_does_not_scroll_sideways(page: str, browser: webdriver.Chrome, width: int) -> None:
    resize(browser, width)
    for closed in browser.find_elements(By.TAG_NAME, "summary"):
        closed.click()
    assert browser.execute_script("return window.innerWidth") == width
    assert sideways(browser) == 0


def test_markup_in_a_caption_is_text_and_long_words_stay_on_the_phone(
    figures: Figures, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    long = "w" * 300
    record = figures.sampled[0]
    captions = [replace(sample, content=EVIL) for sample in record.captions]
    changed = replace(record, caption=EVIL, prompt=long, captions=captions)
    target = tmp_path / "evil.html"
    target.write_text(render_page(replace(figures, sampled=[changed])), encoding="utf-8")
    open_page(browser, target.as_uri())
    resize(browser, 390)
    assert EVIL in browser.find_element(By.ID, "samples").text
    assert browser.execute_script("return window.evil === undefined")
    assert browser.get_log("browser") == []
    assert sideways(browser) == 0
