"""One page of all results: what is in its cells, and how it behaves in a browser."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from core.errors import UserError
from data.metrics import Interval
from data.results import RESULTS, results_text
from report.leaderboard import Cell, columns_of, find_results, render, rows_of
from tests.browser import chromium, requested, resize
from tests.commands import hermesflow

EVIL = "<script>window.evil = 1</script><img src=x onerror='window.evil = 1'>"
JUDGE = {"name": "the pixel oracle", "independent": False}


def figure(name: str, value: float, group: str = "all") -> dict[str, Any]:
    return {"name": name, "group": group, "value": value, "low": value - 0.01, "high": value + 0.02}


def put(folder: Path, system: str, benchmark: str, *rows: dict[str, Any], **recipe: object) -> None:
    folder.mkdir(parents=True)
    told = {"benchmark": benchmark, "rules": {"judge": "endpoint a-model"}, **recipe}
    text = results_text(benchmark, system, told, rows, 100)
    (folder / RESULTS).write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lost = {**figure("items/not drawn", 0), "value": 7.0}
    put(tmp_path / "a/geneval", "Ours", "geneval", figure("overall", 0.71))
    put(tmp_path / "a/dpg", "Ours", "dpg", figure("score", 70.5), lost)
    put(tmp_path / "a/pope", "Ours", "pope", figure("f1", 0.8))
    put(tmp_path / "b/coco", EVIL, "coco", figure("clip_score", 31.5), {**figure("fid", 9.5)})
    put(tmp_path / "b/gap", "Ours", "gap", figure("generation", 0.5), **{"judged by": JUDGE})
    put(tmp_path / "b/shapes", "Ours", "shapes-geneval", figure("overall", 0.25))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / RESULTS).write_text("{", encoding="utf-8")
    return tmp_path


def cells(folder: Path) -> dict[tuple[str, str], Cell]:
    results, _ = find_results([folder])
    columns = columns_of(results)
    return {
        (row.system, column.name): cell
        for row in rows_of(results, columns)
        for column, cell in zip(columns, row.cells, strict=True)
    }


def test_measured_and_published_figures_stand_in_the_same_columns_and_units(folder: Path) -> None:
    found = cells(folder)
    pope = found["Ours", "POPE"].measured[0].interval
    assert (pope.value, pope.low, pope.high) == pytest.approx((80, 79, 82))
    assert found["Ours", "GenEval/overall"].measured[0].interval.value == 0.71
    assert found["SD 2.1", "GenEval/overall"].published == "0.49"
    assert found["Show-o", "POPE"].published == "80.0"
    assert found["Ours", "shapes-geneval overall"].measured[0].interval.value == 0.25
    assert found["VILA-U", "gap/gap"].published == "0.169"


def test_cells_say_how_they_were_made_and_what_is_missing(folder: Path) -> None:
    found = cells(folder)
    assert found["Ours", "DPG-Bench"].measured[0].how == (
        "100 items; 7 without a score; judge endpoint a-model"
    )
    assert found["Ours", "MME"].missing == "hermesflow benchmark mme"
    assert found["SD 2.1", "POPE"].missing == "not published"
    assert found["Ours", "gap/understanding"].missing == "needs a system that reads"
    assert found["Ours", "gap/gap"].missing == "needs one that does both"
    assert "by its own taste" in found["Ours", "gap/generation"].measured[0].how


def test_results_that_cannot_be_read_are_named_and_none_at_all_is_an_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, problems = find_results([folder])
    assert len(results) == 6
    assert len(problems) == 1
    assert "is no result" in render(results, problems)
    assert hermesflow(["leaderboard", str(folder), "--to", str(tmp_path / "x/board.html")]) == 0
    shown = capsys.readouterr()
    assert "6 results of 2 systems" in shown.out
    assert "left out: " in shown.err
    with pytest.raises(UserError, match=r"no results\.json in"):
        find_results([folder / "broken"])
    with pytest.raises(UserError, match="is no folder"):
        find_results([folder / "none"])


def test_tasks_of_lmms_eval_have_columns_and_normal_intervals(folder: Path) -> None:
    document = {
        "results": {"mmstar": {"alias": "mmstar", "average,none": 0.5, "average_stderr,none": 0.1,
                               "other,none": 2.0, "other_stderr,none": "N/A"}},
        "configs": {"mmstar": {"task": "mmstar"}},
        "n-samples": {"mmstar": {"original": 1500, "effective": 300}},
        "config": {"model": "hermesflow", "model_args": "checkpoint=my/show-o"},
    }  # fmt: skip
    (folder / "20261201_results.json").write_text(json.dumps(document), encoding="utf-8")
    (folder / "x_results.json").write_text("[]", encoding="utf-8")
    found = cells(folder)
    system = "hermesflow checkpoint=my/show-o"
    one = found[system, "lmms-eval mmstar average"].measured[0]
    assert one.interval == Interval(0.5, pytest.approx(0.304), pytest.approx(0.696))
    assert one.how == "300 items"
    assert not found[system, "lmms-eval mmstar other"].measured[0].has_interval
    assert found["Ours", "lmms-eval mmstar average"].missing == "lmms-eval mmstar"
    assert any("x_results.json is no result of lmms-eval" in p for p in find_results([folder])[1])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(folder: Path, tmp_path: Path, browser: webdriver.Chrome) -> str:
    target = tmp_path / "board.html"
    assert hermesflow(["leaderboard", str(folder), "--to", str(target)]) == 0
    browser.get_log("browser")
    requested(browser)
    resize(browser, 1200)
    browser.get(target.as_uri())
    return target.as_uri()


def column(browser: webdriver.Chrome, name: str) -> list[tuple[str, str]]:
    """Systems with their values in a column, as they stand; those that are hidden are left out."""
    script = """
        const board = document.getElementById('board');
        const heads = [...board.tHead.rows[0].cells];
        const index = heads.findIndex(head => head.textContent.startsWith(arguments[0]));
        return [...board.tBodies[0].rows].filter(row => row.offsetParent !== null)
            .map(row => [row.cells[0].dataset.value, row.cells[index].dataset.value]);
    """
    found: list[list[str]] = browser.execute_script(script, name)
    return [(system, value) for system, value in found]


def click(browser: webdriver.Chrome, name: str) -> None:
    for button in browser.find_elements(By.CSS_SELECTOR, "#board thead button"):
        if button.text.startswith(name):
            browser.execute_script("arguments[0].click()", button)
            return
    raise AssertionError(name)


@pytest.mark.browser
def test_a_heading_sorts_the_best_first_and_missing_values_last(
    page: str, browser: webdriver.Chrome
) -> None:
    click(browser, "GenEval/overall")
    values = [value for _, value in column(browser, "GenEval/overall")]
    there = [float(value) for value in values if value]
    assert there == sorted(there, reverse=True)
    assert column(browser, "GenEval/overall")[0] == ("Ours", "0.71")
    assert values[len(there) :] == [""] * (len(values) - len(there))
    click(browser, "GenEval/overall")
    assert [float(v) for _, v in column(browser, "GenEval/overall") if v] == sorted(there)
    click(browser, "COCO/FID")
    fids = [float(value) for _, value in column(browser, "COCO/FID") if value]
    assert fids == sorted(fids)
    sorted_by = browser.find_elements(By.CSS_SELECTOR, "#board th[aria-sort]")
    assert len(sorted_by) == 1


@pytest.mark.browser
def test_published_figures_can_be_hidden(page: str, browser: webdriver.Chrome) -> None:
    assert ("SD 2.1", "0.49") in column(browser, "GenEval/overall")
    browser.find_element(By.ID, "published").click()
    assert {system for system, _ in column(browser, "GenEval/overall")} == {"Ours", EVIL}


@pytest.mark.browser
def test_the_page_asks_nobody_and_runs_no_script_but_its_own(
    page: str, browser: webdriver.Chrome
) -> None:
    asked = [one for one in requested(browser) if not one.startswith(("data:", "chrome"))]
    assert asked == [page]
    assert browser.execute_script("return window.evil === undefined")
    assert browser.get_log("browser") == []
    for width in (390, 1200):
        resize(browser, width)
        wide = browser.execute_script(
            "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
        )
        assert wide == 0


def test_recipes_are_on_the_page(folder: Path) -> None:
    page = render(*find_results([folder]))
    assert json.dumps("the pixel oracle").replace('"', "&#34;") in page
    assert "&lt;script&gt;window.evil" in page


def test_a_result_below_two_of_the_folders_is_there_once(folder: Path) -> None:
    results, _ = find_results([folder, folder / "a", folder / "b/../a/dpg"])
    assert sorted(r.benchmark for r in results if r.folder.resolve().parts[-1] == "dpg") == ["dpg"]
    assert len(results) == len(find_results([folder])[0])
