"""The command `hermesflow`: help, completion, examples, and what wrong options get."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import UserError
from flows.cli.app import PANELS, app
from tests.commands import hermesflow

COMMANDS = [
    "run", "own", "check", "plan", "report", "push", "ablations", "ingest", "questions",
    "pairs import",
    "pairs export", "import showo", "import janus", "import vila_u", "export", "pretrain", "parity",
    "conformance",
    "gap", "benchmark", "compare", "leaderboard", "up", "down", "status", "deploy", "store verify",
    "store gc", "store lineage",
]  # fmt: skip
PROGRAM = Path(sys.executable).parent / "hermesflow"


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words are read, and bodies do not run."""
    monkeypatch.setattr("flows.cli.app.run_command", lambda body: 0)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert hermesflow([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"hermesflow {command}" in shown
    assert "--help" in shown


def test_the_list_of_commands_is_whole_and_by_topic(capsys: pytest.CaptureFixture[str]) -> None:
    assert hermesflow(["--help"]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(panel) for panel in PANELS]
    assert places == sorted(places)
    names = {one.name for one in (*app.registered_commands, *app.registered_groups)}
    assert names == {command.split()[0] for command in COMMANDS}
    for name in names:
        assert re.search(rf"^. {name} ", shown, re.MULTILINE), name


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert hermesflow(["--version"]) == 0
    assert re.fullmatch(r"hermesflow \d+\.\d+\.\d+\n", capsys.readouterr().out)


def examples() -> Iterator[str]:
    """Of the help of all commands."""
    for group in (app, *(one.typer_instance for one in app.registered_groups)):
        assert group is not None
        epilogs = [one.epilog for one in group.registered_commands]
        epilogs += [one.epilog for one in group.registered_groups]
        for epilog in epilogs:
            yield from re.findall(r"^hermesflow .*", str(epilog), re.MULTILINE)


@pytest.mark.usefixtures("nothing_runs")
def test_examples_of_the_help_can_be_typed() -> None:
    found = list(examples())
    assert len(found) > 20
    for line in found:
        assert hermesflow(shlex.split(line)[1:]) == 0, line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("rnu", "No such command 'rnu'"),
        ("run --iterations -1", "--iterations"),
        ("run --pool slurm", "process"),
        ("import shoo", "No such command 'shoo'"),
        ("import janus --janus x --roles User --to y", "is not two names with a / between"),
        ("import janus --to y", "--janus"),
        ("import vila_u --to y", "--vila-u"),
        ("gap --checkpoint x --to y", "--pool"),
        ("deploy", "--pool"),
    ],
)
@pytest.mark.usefixtures("nothing_runs")
def test_what_cannot_be_meant_is_named(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hermesflow(words.split()) == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nope --checkpoint x", "there is no benchmark 'nope'; give one of pope,"),
        ("pope --checkpoint x", "pope reads published files (*pope_*.json"),
        ("pope --data x --checkpoint y --clip z", "pope takes no --clip"),
        ("pope --data x --checkpoint y --split test", "pope takes no --split"),
        ("pope --data x", "give one of --checkpoint, --server, --transformers, --answers"),
        ("pope --data x --checkpoint y --answers z", "pope scores one system"),
        ("dpg --data x --checkpoint y", "dpg needs --judge"),
        ("dpg --data x --judge self --answers y", "dpg takes no --answers"),
        ("shapes-pope --data x --checkpoint y", "shapes-pope takes no --data"),
        ("shapes-pope --checkpoint x --limit 0", "--limit 0 leaves no item"),
    ],
)
def test_benchmarks_say_which_options_they_take(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hermesflow(["benchmark", *words.split(), "--to", "out"]) == 2
    assert said in capsys.readouterr().err


def test_an_error_that_nobody_foresaw_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> None:
        raise ZeroDivisionError("not foreseen")

    monkeypatch.setattr("flows.local.status", failing)
    with pytest.raises(ZeroDivisionError):
        hermesflow(["status"])


def test_errors_that_users_can_mend_have_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing() -> None:
        raise UserError("field = 3; give 4")

    monkeypatch.setattr("flows.local.status", failing)
    assert hermesflow(["status"]) == 2
    assert capsys.readouterr().err == "error: field = 3; give 4\n"


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("flows.local", "hermesflow run"),
        ("flows.own", "hermesflow own"),
        pytest.param("flows.ablations", "hermesflow ablations", marks=pytest.mark.slow),
        ("evals.gap", "hermesflow gap"),
        ("tasks.pairs", "hermesflow pairs"),
        pytest.param("models.conformance", "hermesflow conformance", marks=pytest.mark.slow),
    ],
)
def test_modules_that_were_commands_name_the_new_one(module: str, command: str) -> None:
    done = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True)
    assert done.returncode == 1
    assert command in done.stderr


def test_the_program_is_installed_and_completes_words(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "_HERMESFLOW_COMPLETE": "complete_bash",
        "COMP_WORDS": "hermesflow ch",
        "COMP_CWORD": "1",
    }
    done = subprocess.run([PROGRAM], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["check"], done.stderr
