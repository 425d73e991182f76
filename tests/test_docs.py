"""What the documentation shows can be typed, opened and put into a config; the site builds."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.config import Config, load_config
from core.settings import EXTENDS
from tests.commands import hermesflow

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], key=lambda path: path.as_posix())
PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
# Programs of others, whose options are not checked here.
OTHERS = {
    "source", "export", "cd", "cp", "cat", "echo", "printf", "kubectl", "docker", "prefect",
    "torchrun", "git", "curl", "sbatch", "squeue", "scancel", "scontrol", "salloc", "srun", "ssh",
    "nohup", "apt-get",
    "rsync", "pip", "uv", "ls", "mkdir", "rm", "sinfo", "jupyter", "hf", "tail", "END",
}  # fmt: skip


def blocks(page: Path, language: str) -> Iterator[str]:
    """Fenced blocks of a language, without their indent."""
    fence = re.compile(rf"^( *)```{language}\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
    for indent, text in fence.findall(page.read_text(encoding="utf-8")):
        yield re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)


def commands(page: Path) -> Iterator[list[str]]:
    """Words of each command; of several in a line each, and without what is set before it."""
    for block in blocks(page, "bash"):
        block = re.sub(r"<<\s*'?END'?.*?^END$", "", block, flags=re.MULTILINE | re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||;|(?<!\S)\|(?!\S)", line.partition(" #")[0]):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words:
                    yield [word for word in words if word not in ("&", ">")]


def check_make(words: list[str]) -> None:
    """Targets are there, and the variables are used."""
    for word in words:
        name, is_variable, _ = word.partition("=")
        if is_variable:
            assert f"$({name})" in MAKEFILE or f"$(or $({name})" in MAKEFILE, word
        else:
            assert re.search(rf"^([\w. $()/-]+ )?{re.escape(word)}\b.*:", MAKEFILE, re.MULTILINE), (
                word
            )


@pytest.mark.parametrize("name", NAMES)
def test_commands_of_a_page_can_be_typed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.cli.app.run_command", lambda body: 0)
    for program, *words in commands(ROOT / name):
        if program == "hermesflow":
            asks = any(word in ("--help", "--install-completion") for word in words)
            assert asks or hermesflow(words) == 0, (name, words)
        elif program == "make":
            check_make(words)
        elif program.endswith("python") and words[0] == "-m":
            assert importlib.util.find_spec(words[1]), words
        else:
            assert program in OTHERS or program.startswith((".venv/bin/", "docker/")), program
        if "torchrun" in program:
            assert importlib.util.find_spec(words[words.index("-m") + 1])


@pytest.mark.parametrize("name", NAMES)
def test_configs_of_a_page_are_valid(name: str, tmp_path: Path) -> None:
    """Each is what differs from the profile that it extends, or from pipeline.yaml."""
    for number, block in enumerate(blocks(ROOT / name, "yaml")):
        given: Any = yaml.safe_load(block)
        if not isinstance(given, dict) or not set(given) <= {*Config.model_fields, EXTENDS}:
            continue
        given[EXTENDS] = str(ROOT / given.get(EXTENDS, "pipeline.yaml"))
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(given), encoding="utf-8")
        load_config(path)


@pytest.mark.parametrize("name", NAMES)
def test_links_of_a_page_lead_somewhere(name: str) -> None:
    page = ROOT / name
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", text):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        place = page.parent / target if target else page
        assert place.exists(), f"{name}: {target}"
        if anchor and place.suffix == ".md":
            heads = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor[1:] in {slug(head) for head in heads}, f"{name}: {target}{anchor}"


def slug(head: str) -> str:
    """How a heading is named in an address."""
    words = re.sub(r"[^\w\s-]", "", head.lower()).strip()
    return re.sub(r"[\s]+", "-", words)


def test_the_readme_fits_a_reader() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    """A link to nowhere, or a page that no menu has, is an error; pages of the code are there."""
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html")}
    assert {"index.html", "reference/config.html", "explanation/architecture.html"} <= pages
    assert (tmp_path / "notebooks/built_in_world.ipynb").is_file()  # to download
    config = (tmp_path / "reference/config.html").read_text(encoding="utf-8")
    assert "seed of sampling and training" in config
    assert "hermesflow store gc" in (tmp_path / "reference/commands.html").read_text("utf-8")
    assert "sample-images" in (tmp_path / "reference/stages.html").read_text("utf-8")
    assert "record_id" in (tmp_path / "reference/tables.html").read_text("utf-8")
    for path in tmp_path.rglob("*.html"):
        found = re.findall(r'(?:src|href)="(https?://[^"]+)"', path.read_text("utf-8"))
        loaded = [one for one in found if one.endswith((".js", ".css", ".woff2"))]
        assert not loaded, f"{path} asks others for {loaded}"
