"""What the documentation shows can be typed, opened, put into a config and run; the site builds."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.config import Config, load_config
from core.settings import EXTENDS
from tests.commands import hermesflow
from tests.docs_readers import CI, Page, Unrun, hub, short
from tests.docs_readers import PAGES as READ
from tests.docs_runner import Reader, Step, replaced, steps
from tests.docs_runner import target as target_of

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
    "rsync", "pip", "uv", "python", "ls", "mkdir", "rm", "sinfo", "jupyter", "hf", "tail", "END",
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
def test_commands_in_sentences_can_be_typed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command alone is its name; one with arguments is whole, unless dots leave something out."""
    monkeypatch.setattr("flows.cli.app.run_command", lambda body: 0)
    prose = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    for text in re.findall(r"`((?:hermesflow|make) [^`]*)`", prose):
        program, *words = text.replace("[", " ").replace("]", " ").split()
        if program == "make":
            check_make(words)
        elif words[0] in ("COMMAND", "--install-completion") or words == ["import", "mine"]:
            continue  # any; changes files of a shell; a family of somebody's own
        elif len(words) == 1 or "..." in words:
            assert words[0] == "--help" or hermesflow([words[0], "--help"]) == 0, text
        else:
            assert hermesflow(words) == 0, text


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


def told(name: str) -> list[Step]:
    """Steps of a page for its reader; pieces of modules are not."""
    return [one for one in steps(ROOT / name) if one.kind != "python" or "/how-to/" in name]


WITH_STEPS = [name for name in NAMES if told(name)]


def test_every_page_that_tells_what_to_do_has_a_reader() -> None:
    assert set(WITH_STEPS) == set(READ)


@pytest.mark.parametrize("name", WITH_STEPS)
def test_what_is_not_run_of_a_page_is_there_and_run_elsewhere(name: str) -> None:
    unrun = READ[name].unrun
    typed = {step.text for step in told(name) if step.kind == "bash"}
    assert set(unrun) <= typed, f"no longer there: {set(unrun) - typed}"
    assert set(READ[name].says) <= typed - set(unrun)
    for statement, reason in unrun.items():
        check_elsewhere(statement, reason)


def check_elsewhere(statement: str, reason: Unrun) -> None:
    """A test file, a target, or CI, which has to name the same command."""
    if reason.run_by == CI:
        assert statement in (ROOT / CI).read_text(encoding="utf-8"), statement
    elif reason.run_by.startswith("make "):
        check_make(reason.run_by.split()[1:])
    elif reason.run_by:
        assert (ROOT / reason.run_by).exists(), reason.run_by


@pytest.mark.parametrize("name", WITH_STEPS)
def test_blocks_of_yaml_say_where_they_belong(name: str) -> None:
    for step in told(name):
        if step.kind == "yaml":
            target_of(step.text)


@pytest.fixture(scope="module")
def after_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Somebody who has done what the quickstart tells, with the servers up."""
    reader = Reader(tmp_path_factory.mktemp("after") / "hermesflow")
    short(reader)
    reader.run("hermesflow run")
    yield reader
    reader.leave()


@pytest.fixture
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reader]:
    """The one that a page supposes."""
    page: Page = request.getfixturevalue("page")
    with ExitStack() as ends:
        if page.after_run:
            found: Reader = request.getfixturevalue("after_run")
            found.run(f"cd '{found.folder}'")
        else:
            found = Reader(tmp_path / "hermesflow")
            ends.callback(found.leave)
        if page.hub:
            address = ends.enter_context(hub(tmp_path))
            found.environment |= {"HF_ENDPOINT": address, "HF_TOKEN": "hf_test"}
            found.environment["HF_HUB_DISABLE_XET"] = "1"
        yield found


@pytest.fixture
def page(name: str) -> Page:
    return READ[name]


@pytest.mark.slow
@pytest.mark.xdist_group("docs")
@pytest.mark.parametrize(
    "name", [name for name in READ if any(step.text not in READ[name].unrun for step in told(name))]
)
def test_a_page_does_what_it_says(name: str, page: Page, reader: Reader) -> None:
    """Its reader types it from top to bottom; every statement ends well and says what it should."""
    values = page.bring(reader)
    text = "".join(step.text for step in told(name))
    assert [old for old in values if old not in text] == []
    for step in told(name):
        if step.text in page.unrun:
            continue
        said = reader.do(Step(step.kind, replaced(step.text, values)))
        if wanted := page.says.get(step.text):
            assert re.search(wanted, said), f"$ {step.text}\n{said}"
