"""Many iterations in a row: `make soak [ITERATIONS=50]`.

One self-play on a very small setting with real servers. After each iteration it measures what may
grow: memory and open files of the loop, memory of the servers, artifacts, databases, seconds. Of
many iterations lines are fitted, and their slopes held against what docs/reliability.md says; of
few the whole growth, with an allowance for caches that fill. Then `gc` frees space, and the
self-play is walked again without doing anything anew.
"""

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import yaml

from core.config import Config, load_config
from core.store import Store
from core.store.inventory import show_bytes
from core.store.verify import verify
from flows.servers import running
from tests.chaos import Loop, prepared
from tests.driver import ROOT
from tests.limits import HANGS_SECONDS
from tests.loops import Runner, play

SMALL: Mapping[str, Mapping[str, object]] = {
    "data": {"pool_records": 12, "test_records": 6},
    "evaluation": {"images_per_prompt": 1, "bootstrap_samples": 100},
    "training": {"image_draws": 1, "batch_size": 8},
    "runtime": {"threads": 1},
}
WARM_UP = 10  # iterations in which caches and pools of memory fill
LONG = 30  # iterations from which slopes are told from noise and warm-up
FEWEST = 3


@dataclass(frozen=True)
class Measure:
    """What is measured, how much of it an iteration may add, and how it is shown.

    `once` is what a warm-up may add beside; None if few iterations say nothing about the measure.
    """

    name: str
    bound: float
    once: float | None
    show: Callable[[float], str]


@dataclass(frozen=True)
class Growth:
    """By how much a measure grew, and by how much it may, `per` iteration or in all."""

    measure: Measure
    value: float
    bound: float
    per: str

    @property
    def right(self) -> bool:
        """Whether it is within its bound."""
        return self.value <= self.bound

    def __str__(self) -> str:
        show = self.measure.show
        return f"{show(self.value)} {self.per} (at most {show(self.bound)})"


def _number(value: float) -> str:
    return f"{value:.3f}"


def _bytes(value: float) -> str:
    return ("-" if value < 0 else "") + show_bytes(int(abs(value)))


MB = 1e6
MEASURES = (
    Measure("memory of the loop", 1.5 * MB, 100 * MB, _bytes),
    Measure("open files of the loop", 0.1, 2, _number),
    Measure("memory of Prefect", 1.5 * MB, 20 * MB, _bytes),
    Measure("memory of MLflow", 1.5 * MB, 20 * MB, _bytes),
    Measure("store", 8 * MB, 0, _bytes),
    Measure("Prefect database", 1.5 * MB, 5 * MB, _bytes),
    Measure("MLflow database and files", 1.5 * MB, 1 * MB, _bytes),
    # The first has the base and the start in it, and others may come to use the machine.
    Measure("seconds of an iteration", 0.1, None, _number),
)
Row = dict[str, float]


def size_of(folder: Path) -> float:
    """Bytes of all files below a folder, which others may be deleting."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(place, name).stat().st_size
    return float(total)


def memory(pid: int) -> float:
    """Resident memory of a process and of all that it started."""
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    return float(sum(member.memory_info().rss for member in family))


def measure(loop: Loop, pid: int) -> Row:
    """What there is now."""
    state = loop.folder / ".hermesflow"
    servers = running(state)
    return {
        "memory of the loop": memory(pid),
        "open files of the loop": float(psutil.Process(pid).num_fds()),
        "memory of Prefect": memory(servers["prefect"].pid),
        "memory of MLflow": memory(servers["mlflow"].pid),
        "store": size_of(loop.store),
        "Prefect database": size_of(state / "prefect"),
        "MLflow database and files": size_of(state / "mlflow"),
    }


def watch(loop: Loop, iterations: int, log: Path) -> tuple[list[Row], int]:
    """Run the loop; what there was after each iteration, and its exit code."""
    process = loop.start(log)
    rows: list[Row] = []
    last = time.monotonic()
    try:
        while process.poll() is None and time.monotonic() < last + HANGS_SECONDS:
            text = log.read_text(encoding="utf-8", errors="replace")
            ended = re.search(rf"^iteration {len(rows) + 1}\s+register\b", text, re.MULTILINE)
            if ended and len(rows) < iterations:
                now = time.monotonic()
                seconds, last = now - last, now
                rows.append(measure(loop, process.pid) | {"seconds of an iteration": seconds})
                size = _bytes(rows[-1]["memory of the loop"])
                print(f"iteration {len(rows)}: {seconds:.1f} s, {size}", flush=True)
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            process.kill()
    return rows, process.wait()


def slopes(rows: Sequence[Row]) -> dict[str, float]:
    """What an iteration adds to each measure, by least squares after the warm-up."""
    warm = rows[WARM_UP:]
    steps = np.arange(len(warm))
    return {m.name: float(np.polyfit(steps, [r[m.name] for r in warm], 1)[0]) for m in MEASURES}


def judge(rows: Sequence[Row]) -> list[Growth]:
    """How what can be judged after so many iterations grew.

    A line through few would be one through the warm-up, so there it is the whole growth since the
    first.
    """
    if len(rows) >= LONG:
        found = slopes(rows)
        return [Growth(m, found[m.name], m.bound, "an iteration") for m in MEASURES]
    first, last, steps = rows[0], rows[-1], len(rows) - 1
    return [
        Growth(m, last[m.name] - first[m.name], m.once + steps * m.bound, "in all")
        for m in MEASURES
        if m.once is not None
    ]


def write_table(rows: Sequence[Row], path: Path) -> None:
    """One line an iteration."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["iteration", *(m.name for m in MEASURES)])
        writer.writeheader()
        writer.writerows({"iteration": i, **row} for i, row in enumerate(rows, 1))


def show_table(rows: Sequence[Row], growths: Sequence[Growth]) -> None:
    """Each measure after the first iteration and after the last, and what is said about it."""
    said = {g.measure.name: f"{g}{'' if g.right else '  FAULT'}" for g in growths}
    for m in MEASURES:
        first, last = m.show(rows[0][m.name]), m.show(rows[-1][m.name])
        judged = said.get(m.name, f"not judged by fewer than {LONG} iterations")
        print(f"{m.name:27} {first:>10} to {last:>10}, {judged}")


def check_retention(loop: Loop, config: Config) -> list[str]:
    """Free what no checkpoint needs, and walk the self-play again."""
    before = size_of(loop.store)
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "store",
        "gc",
        "--store",
        str(loop.store),
        "--delete",
    ]
    environment = {**os.environ, **loop.environment, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    after = size_of(loop.store)
    print(f"gc: {_bytes(before)} before, {_bytes(after)} after", flush=True)
    if done.returncode != 0 or after >= before:
        return [f"gc freed nothing ({done.returncode}): {done.stdout[-500:]}{done.stderr[-500:]}"]
    print(verify(Store(str(loop.store))), flush=True)
    runner: Runner
    runner, _ = play(config)
    anew = set(runner.fresh()) - {"gate"}  # which has another opponent without a registry
    return [f"done anew after gc: {sorted(anew)}"] if anew else []


def _iterations(text: str) -> int:
    number = int(text)
    if number < FEWEST:
        raise argparse.ArgumentTypeError(f"{number} say nothing; give {FEWEST} or more")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """The soak; 1 if something grows that should not, or by more than it may."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--iterations", type=_iterations, default=50)
    parser.add_argument("--to", type=Path, default=None, help="folder for table and log")
    options = parser.parse_args(arguments)
    started, root = time.monotonic(), Path(tempfile.mkdtemp(prefix="hermesflow-soak-"))
    to: Path = options.to or root
    to.mkdir(parents=True, exist_ok=True)
    faults: list[str] = []
    with prepared(root / "place", False) as loop:
        path = loop.folder / "config.yaml"
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        for section, values in SMALL.items():
            document[section] |= values
        document |= {"iterations": options.iterations, "store": str(loop.store)}
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        rows, code = watch(loop, options.iterations, to / "soak.log")
        write_table(rows, to / "soak.csv")
        if code != 0 or len(rows) < options.iterations:
            tail = (to / "soak.log").read_text(encoding="utf-8").splitlines()[-15:]
            faults.append(f"ended with {code} after {len(rows)} iterations:\n" + "\n".join(tail))
        else:
            faults += check_retention(loop, load_config(path, {"tracking.enabled": False}))
    if len(rows) >= FEWEST:
        growths = judge(rows)
        show_table(rows, growths)
        faults += [f"{g.measure.name} grows by {g}" for g in growths if not g.right]
    for fault in faults:
        print(f"FAULT: {fault}")
    seconds = time.monotonic() - started
    print(f"{len(rows)} iterations, {seconds:.0f} s, {len(faults)} faults; table: {to}/soak.csv")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
