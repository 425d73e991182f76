"""Our packages beside those of others, some with the same names; the licences of the others."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from core.licences import UNKNOWN, dependencies, licence, main
from core.ours import PACKAGES

ROOT = Path(__file__).parent.parent
NAMES = ("core", "data", "models")
HELP = [
    ("flows.cli", "pretrain"),
    ("tasks.base", "--store"),
    # Of the others each waits for its imports, some seconds.
    pytest.param("tasks.train", "--store", marks=pytest.mark.slow),
    pytest.param("tasks.evaluate", "--store", marks=pytest.mark.slow),
]


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A folder with packages that must not be imported, and a folder of data that is none."""
    for name in NAMES:
        (tmp_path / name).mkdir()
        text = f"raise RuntimeError('the other {name}')\n"
        (tmp_path / name / "__init__.py").write_text(text, encoding="utf-8")
    (tmp_path / "report").mkdir()
    return tmp_path


def run(command: list[str], folder: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    python_path = os.pathsep.join(map(str, paths))
    environment = {**os.environ, "PYTHONPATH": python_path}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("module", "says"), HELP)
def test_commands_work_where_others_come_first(other: Path, module: str, says: str) -> None:
    """The folder is on PYTHONPATH, before ours."""
    done = run([sys.executable, "-P", "-m", module, "--help"], other, other, ROOT)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


def test_an_installed_python_finds_our_commands_in_any_folder(other: Path, tmp_path: Path) -> None:
    """Also those of a package that the folder has: Python would look for the module in there."""
    python = tmp_path / "environment/bin/python"
    venv = [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "environment")]
    subprocess.run(venv, check=True)
    command = [str(python), "-m", "core.errors"]
    assert "the other core" in run(command, other, other).stderr
    subprocess.run([python, ROOT / "core/ours.py"], check=True)
    done = run(command, other, other)
    assert done.returncode == 0, done.stderr
    # Another copy of the project is meant where it is the current folder.
    copy = tmp_path / "copy/core"
    copy.mkdir(parents=True)
    for name, text in (("__init__", ""), ("ours", ""), ("errors", "print('the copy')")):
        (copy / f"{name}.py").write_text(text, encoding="utf-8")
    assert run(command, copy.parent).stdout == "the copy\n"
    # What is no command of ours keeps its own packages.
    assert "the other core" in run([str(python), "-c", "import core"], other, other).stderr
    assert (
        "No module named core.nothing"
        in run([str(python), "-m", "core.nothing"], tmp_path / "environment", ROOT).stderr
    )


def test_a_package_of_others_that_is_loaded_is_named_with_its_place(other: Path) -> None:
    (other / "models/__init__.py").write_text("", encoding="utf-8")
    done = run([sys.executable, "-P", "-c", "import models, tasks.base"], other, other, ROOT)
    assert done.returncode == 1
    assert f"the package 'models' of {other / 'models'} is loaded in this process" in done.stderr
    assert "in a process of its own" in done.stderr


def test_every_room_is_among_our_packages_and_in_images() -> None:
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(PACKAGES) == rooms
    shipped = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{room}" for room in rooms - {"bench"}} <= set(shipped)


def test_everything_that_is_needed_has_a_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0
    shown = capsys.readouterr().out
    for name in ("torch", "prefect", "mlflow", "pillow", "hypothesis"):
        assert f"\n{name} " in f"\n{shown}"
    assert shown.endswith("without a licence: none\n")
    found = dependencies("hermesflow")
    assert {"sqlalchemy", "tokenizers"} <= set(found)  # of MLflow and of transformers
    assert all(licence(one) != UNKNOWN for name, one in found.items() if name != "hermesflow")


def test_the_notice_names_what_we_are_built_on_with_its_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["containers"], *extras["diffusers"]]
    names = [re.split(r"[\[<>=~]", requirement)[0] for requirement in needed]
    lines = (ROOT / "NOTICE").read_text(encoding="utf-8").splitlines()
    said = dict(line.removeprefix("- ").split(": ", 1) for line in lines if line.startswith("- "))
    assert list(said) == names
    for name in names:
        # The tests need no pipelines of diffusers, so that it need not be there.
        if name != "diffusers" or find_spec(name):
            assert said[name].startswith(licence(distribution(name)))


def test_the_citation_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
