"""SIGTERM, Ctrl-C, stages that hang and whole process groups that are killed, for real."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from core import progress
from core.command import run_command
from core.interrupts import Terminated, held_back
from core.watchdog import EXIT_STALLED
from tests import chaos
from tests.cluster import until
from tests.driver import ROOT, digests, finish, start
from tests.limits import run_python
from tests.loops import Finished

LEAVE_SECONDS = 30.0


def send(number: int, after: float = 0.0) -> None:
    """Send a signal to this process, as somebody else would."""
    threading.Timer(after, os.kill, (os.getpid(), number)).start()


def test_commands_end_with_the_codes_of_shells(capsys: pytest.CaptureFixture[str]) -> None:
    # As in a terminal: what a shell starts in the background ignores Ctrl-C.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        send(number, 0.1)
        assert run_command(lambda: time.sleep(30)) == code
        assert "run the same command again to continue" in capsys.readouterr().err
    signal.signal(signal.SIGINT, previous)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_signal_that_is_held_back_comes_at_the_end() -> None:
    done = []

    def work() -> None:
        with held_back() as is_to_end:
            assert not is_to_end()
            os.kill(os.getpid(), signal.SIGTERM)
            assert is_to_end()
            done.append("step")
        done.append("more")

    assert run_command(work) == 143
    assert done == ["step"]


def test_second_ctrl_c_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt) as error, held_back():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
    assert error.type is not Terminated


def training(store: Path) -> bool:
    """Whether the loop trains and has saved a state since."""
    return bool(list(store.glob("train/*/state/step-*.json")))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_loop_that_is_asked_to_end_saves_its_training_and_goes_on(
    tmp_path: Path, finished: Finished, number: int, code: int
) -> None:
    store = tmp_path / "store"
    loop = start(store)
    until(lambda: training(store), "training")
    asked = time.monotonic()
    loop.send_signal(number)
    ended, output = finish(loop)
    assert ended == code, output
    assert time.monotonic() - asked < LEAVE_SECONDS
    assert "interrupted; run the same command again to continue" in output
    assert "Traceback" not in output
    assert list(store.rglob(".tmp")) == []
    [saved] = [int(p.stem.removeprefix("step-")) for p in store.glob("train/*/state/*.json")]
    ended, output = finish(start(store))
    assert ended == 0, output
    assert f"continuing after step {saved}" in output
    assert digests(store).items() <= digests(finished[0]).items()


TOGETHER = """
import sys
from core.command import run_command
from core.runtime import setup_logging
from tests.loops import play, quick
setup_logging()
sys.exit(run_command(lambda: play(quick(sys.argv[1], runtime__processes=2, training__epochs=8))))
"""


@pytest.mark.slow
def test_processes_that_train_together_save_and_end(tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-c", TOGETHER, str(store)]

    def together() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    loop = together()
    until(lambda: training(store), "training")
    family = psutil.Process(loop.pid).children(recursive=True)
    assert len(family) == 3  # the launcher and two ranks
    loop.terminate()
    ended, output = finish(loop)
    assert ended == 143, output
    assert "the process is asked to end" in output
    assert not any(child.is_running() for child in family)
    ended, output = finish(together())
    assert ended == 0, output
    assert "continuing after step" in output


STALL_MINUTES = 0.08
HANGING = f"""
import sys, threading, time
from core.config import load_config
from core.stage import Stage, run_stage
from core.store import Store

def body(context):
    with context.progress("work", 60) as bar:
        for _ in range(60):
            time.sleep(0.1)
            bar.update()
    with context.draft.write("part") as path:
        path.write_text("done")
    if len(sys.argv) == 2:
        threading.Event().wait()
    return {{}}

changes = {{"store": sys.argv[1], "runtime.stall_minutes": {STALL_MINUTES}}}
config = load_config("tests/configs/quick.yaml", changes)
run_stage(Stage("stuck", 1, (), (), body), config, Store(sys.argv[1]), {{}})
"""


@pytest.mark.slow
def test_stage_that_hangs_ends_itself_and_says_where(tmp_path: Path) -> None:
    """It works longer than it may be silent, then says nothing more."""
    done = run_python("-c", HANGING, tmp_path / "store")
    assert done.returncode == EXIT_STALLED, done.stderr
    assert f"stage stuck has reported no progress for {STALL_MINUTES} minutes" in done.stderr
    assert "runtime.stall_minutes" in done.stderr
    assert "in body" in done.stderr  # where it was
    assert "work: 60/60" in done.stderr
    assert run_python("-c", HANGING, tmp_path / "store", "ends").returncode == 0
    [manifest] = tmp_path.glob("store/stuck/*/manifest.json")
    assert list(json.loads(manifest.read_text(encoding="utf-8"))["files"]) == ["part"]


def test_every_kind_of_report_counts_as_progress() -> None:
    for report in (
        lambda: progress.progress("x", 1),
        progress.progress("x", 1).update,
        progress.Silent("x", 1).update,
    ):
        progress._last_beat -= 100.0
        assert progress.silence() >= 100.0
        report()
        assert progress.silence() < 10.0


@pytest.mark.slow
def test_loop_ends_as_undisturbed_however_often_it_is_killed() -> None:
    assert chaos.main(["--plain", "--kills", "5", "--seed", "3"]) == 0
