"""Notebooks are valid, small and without outputs, and run from their first cell to their last."""

import ast
import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests import test_docs
from tests.limits import ROOT, run_python

NOTEBOOKS = sorted(ROOT.glob("docs/**/*.ipynb"))
BUILT_IN_WORLD = ROOT / "docs/notebooks/built_in_world.ipynb"
KEYS = {
    "code": {"cell_type", "execution_count", "id", "metadata", "outputs", "source"},
    "markdown": {"cell_type", "id", "metadata", "source"},
}
LARGEST = 30_000  # bytes

Cell = dict[str, Any]
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[Cell]:
    """Cells of a kind, in their order."""
    found: list[Cell] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def test_notebooks_are_found() -> None:
    assert BUILT_IN_WORLD in NOTEBOOKS


@each
def test_a_notebook_is_valid_and_holds_no_outputs(path: Path) -> None:
    """As nbformat 4.5 has it: every cell with an id, and code without anything of a run."""
    assert path.stat().st_size < LARGEST
    book = json.loads(path.read_text(encoding="utf-8"))
    assert set(book) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert book["metadata"]["kernelspec"] == {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    for cell in book["cells"]:
        assert set(cell) == KEYS[cell["cell_type"]], cell
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell["id"])
        assert all(isinstance(line, str) for line in cell["source"])
        # One line each, as Jupyter writes them, so that diffs are small.
        assert cell["source"] == "".join(cell["source"]).splitlines(keepends=True)
        tags = cell["metadata"].get("tags", [])
        assert all(re.fullmatch(r"[^,]+", tag) for tag in tags)
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)


@each
def test_imports_of_a_notebook_resolve(path: Path) -> None:
    """Each cell is plain Python, without what only Jupyter understands."""
    for cell in cells(path, "code"):
        for node in ast.walk(ast.parse("".join(cell["source"]), cell["id"])):
            if isinstance(node, ast.Import):
                for one in node.names:
                    import_module(one.name)
            elif isinstance(node, ast.ImportFrom):
                assert node.module, cell["id"]
                for one in node.names:
                    assert hasattr(import_module(node.module), one.name), one.name


@each
def test_texts_of_a_notebook_hold(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links lead somewhere, from the notebook's folder; commands can be typed."""
    monkeypatch.setattr("flows.cli.app.run_command", lambda body: 0)
    page = tmp_path / "page.md"
    text = "\n\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    page.write_text(text + "\n", encoding="utf-8")
    for words in test_docs.commands(page):
        assert words[0] == "hermesflow", words
        assert test_docs.hermesflow(words[1:]) == 0, words
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    for link in links:
        assert (path.parent / link).is_file(), link


def test_a_machine_that_has_the_project_skips_one_cell() -> None:
    """The first one, and the settings that others replace are in one, too."""
    tags = [cell["metadata"].get("tags", []) for cell in cells(BUILT_IN_WORLD, "code")]
    assert tags[0] == ["install"]
    assert sorted(tag for one in tags for tag in one) == ["install", "parameters"]


@pytest.mark.slow
def test_the_built_in_world_runs_from_the_first_cell_to_the_last(tmp_path: Path) -> None:
    """From the folder of the notebook, without Jupyter, on fewer scenes than it has."""
    changes = {
        "store": str(tmp_path / "store"),
        "tracking.enabled": False,
        "iterations": 1,
        "benchmarks": [],
        "runtime.threads": 1,
    }
    settings = json.dumps({"CONFIG": "tests/configs/quick.yaml", "CHANGES": changes})
    runner = ROOT / "tests/notebook_runner.py"
    ended = run_python(
        runner, BUILT_IN_WORLD, settings, cwd=BUILT_IN_WORLD.parent, MPLBACKEND="Agg"
    )
    assert ended.returncode == 0, ended.stderr
    *said, last = ended.stdout.splitlines()
    shown = json.loads(last)
    assert [cell["id"] for cell in cells(BUILT_IN_WORLD, "code")] == ["install", *shown]
    pictures = {name: method for name, method in shown.items() if method}
    assert pictures == {"report": "_repr_html_", "prompt": "_repr_png_"}
    assert sum(line.startswith("generation G ") for line in said) == 1
    assert list(tmp_path.glob("store/reports/*/report.html"))
