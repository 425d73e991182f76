"""The live view of a run in a terminal, and that nothing of it goes elsewhere."""

import io
import os
import pty
import subprocess
import sys

import pytest
from rich.console import Console

from core.progress import progress
from flows.terminal import View

ROWS = [
    {"name": "understanding", "group": "all", "value": 0.905},
    {"name": "generation", "group": "all", "value": 0.682},
    {"name": "generation", "group": "category/color", "value": 0.1},
    {"name": "gap", "group": "all", "value": 0.223},
]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of the clock, which stands still unless it is moved."""
    clock = [1000.0]
    monkeypatch.setattr("flows.terminal.time.monotonic", lambda: clock[0])
    return clock


def drawn(view: View) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_it_shows_stage_rate_time_left_and_scores(now: list[float]) -> None:
    view = View("self-play shapes seed 0", 3)
    view.stage("base", "evaluate")
    assert "the first checkpoint is judged soon" in drawn(view)
    now[0] += 30
    view.checkpoint("base", ROWS, 0)
    view.stage("iteration 1", "sample-images")
    bar = view.bar("sample-images", 1000)
    assert "sample-images  " in drawn(view)
    assert "0 of 1,000" in drawn(view)
    now[0] += 10
    bar.update(400)
    shown = drawn(view)
    assert "self-play shapes seed 0 · iteration 1 · 0:40 so far" in shown
    assert "left" not in shown.splitlines()[1]  # of the whole, nobody knows yet
    assert "400 of 1,000  40/s  0:15 left" in shown
    assert "sample-images: " not in shown  # the name of the stage is not said twice
    assert ["base", ".905", ".682", ".223"] in [line.split() for line in shown.splitlines()]
    assert ".100" not in shown


def test_a_step_that_has_ended_keeps_its_rate(now: list[float]) -> None:
    view = View("run", 1)
    bar = view.bar("pictures", 100)
    now[0] += 10
    bar.update(100)
    bar.close()
    now[0] += 90
    assert "pictures: 100 of 100  10/s\n" in drawn(view).replace(" \n", "\n")


def test_steps_of_unknown_length_show_what_is_done(now: list[float]) -> None:
    view = View("run", 1)
    bar = view.bar("pairs", None)
    now[0] += 4
    bar.update(2)
    assert "pairs: 2  0.5/s" in drawn(view)


def test_what_is_left_goes_by_the_longest_iteration(now: list[float]) -> None:
    view = View("run", 3)
    now[0] += 500  # of the base, which is no iteration
    view.checkpoint("base", ROWS, 0)
    now[0] += 60
    view.checkpoint("iteration 1", ROWS, 1)
    assert "about 2:00 left" in drawn(view)
    now[0] += 45
    assert "about 1:15 left" in drawn(view)
    now[0] += 45
    view.checkpoint("iteration 2", ROWS, 2)
    assert "about 1:30 left" in drawn(view)


SCRIPT = """
import logging, sys, time
from prefect.logging.configuration import setup_logging
from core.progress import progress
from flows.terminal import View
setup_logging()  # as at the start of a flow
view = View("self-play of a test", 1)
with view.shown():
    view.stage("base", "evaluate")
    with progress("answers", 8) as bar:
        for _ in range(8):
            bar.update()
            time.sleep(0.2)
    print("for the pipe", flush=True)
    print("for people", file=sys.stderr, flush=True)
    logging.getLogger("prefect").warning("from %s", "Prefect")
    time.sleep(0.6)
"""


def output(terminal: bool) -> tuple[str, str]:
    """stdout, which is a pipe, and what the terminal or the other pipe got."""
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "90"}
    command = [sys.executable, "-c", SCRIPT]
    if not terminal:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout, done.stderr
    ours, theirs = pty.openpty()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 4096):
            seen += part
    except OSError:  # all who had it open are gone
        pass
    os.close(ours)
    out = child.communicate()[0].decode()
    assert child.returncode == 0, seen.decode()
    return out, seen.decode()


def test_a_terminal_gets_the_view_and_pipes_keep_their_lines() -> None:
    out, seen = output(terminal=True)
    assert out == "for the pipe\n"
    assert "self-play of a test · base · 0:0" in seen
    assert "answers: " in seen
    assert "for people" in seen
    # On a line of its own, where nothing is drawn over it.
    [line] = [line for line in seen.splitlines() if "from Prefect" in line]
    assert "judged soon" not in line
    assert seen.endswith("\x1b[?25h") or "\x1b[?25h" in seen  # the cursor is back


def test_without_a_terminal_there_are_plain_lines() -> None:
    out, seen = output(terminal=False)
    assert out == "for the pipe\n"
    assert seen.splitlines()[0].startswith("answers: 8/8 after ")
    assert seen.splitlines()[1] == "for people"
    assert "\x1b" not in seen


def test_steps_outside_of_a_view_are_not_its_own() -> None:
    view = View("run", 1)
    with progress("alone", 3) as bar:
        bar.update(3)
    assert "alone" not in drawn(view)
