"""The kill matrix: `make chaos [KILLS=30 CHAOS_SEED=1 PLAIN=1]`.

Runs the loop again and again and kills its whole process group at moments spread over every stage,
until it has ended in spite of that; then compares the end with that of an undisturbed run.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml
from mlflow import MlflowClient

from core.errors import UserError
from core.files import unused
from core.store import IN_USE, Store
from core.store.verify import verify
from flows.servers import client_environment, ensure_servers, stop_all
from tests.driver import ROOT, command, digests
from tests.limits import HANGS_SECONDS, free_port
from tests.loops import QUICK
from tests.screenshots import ask, logged_in
from tracking.registry import KEY

ITERATIONS = 2
THREADS = 2  # of the loop, in which it computes the halves of its batches
ENDED = re.compile(r"^(base|iteration \d+)\s+(\S+)\s+(cached|[\d.]+ s|version \d+, .*)$")
CONTINUED = re.compile(r"continuing after step (\d+)")
CHAOS = "HERMESFLOW_CHAOS"  # marks all that the loop starts
Occurrence = tuple[str, ...]  # label of the iteration, stage, which of several


@dataclass
class Loop:
    """How the loop is started, and where."""

    folder: Path
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def store(self) -> Path:
        """Its artifacts."""
        return self.folder / "store"

    @property
    def temporary(self) -> Path:
        """What it takes for the system's folder of temporary files."""
        return self.folder / "tmp"

    def start(self, log: Path) -> subprocess.Popen[bytes]:
        """Start it in a process group of its own."""
        own = {CHAOS: self.mark, "TMPDIR": str(self.temporary)}
        own |= {"HERMESFLOW_CACHE": str(self.folder / "cache"), "PYTHONPATH": str(ROOT)}
        with open(log, "wb") as output:
            return subprocess.Popen(
                self.arguments,
                cwd=self.folder,
                env={**os.environ, **self.environment, **own},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


class Faults(list[str]):
    """What was found, said when it is found."""

    def expect(self, right: bool, fault: str) -> None:
        """Note a fault unless all is right."""
        if not right:
            print(f"FAULT: {fault}", flush=True)
            self.append(fault)


def read_ends(log: Path) -> list[tuple[Occurrence, float]]:
    """The stages that have ended so far, and the seconds they took now."""
    text = log.read_text(encoding="utf-8", errors="replace")
    found = [match for line in text.splitlines() if (match := ENDED.match(line.strip()))]
    ends: list[tuple[Occurrence, float]] = []
    seen = Counter[Occurrence]()
    for label, stage, how in (match.groups() for match in found):
        # A checkpoint that is registered already needs no gate, and has no line of one.
        stage = "gate" if stage == "register" else stage
        occurrence: Occurrence = (label, stage)
        seen[occurrence] += 1
        # One for each benchmark; a decision has a line for its registration, too.
        if seen[occurrence] > 1 and stage != "gate":
            occurrence = (label, stage, str(seen[occurrence]))
        ends.append((occurrence, float(how[:-2]) if how.endswith(" s") else 0.0))
    return ends


def aims(order: Sequence[Occurrence], kills: int, chance: random.Random) -> list[int]:
    """Which occurrence each kill is aimed at, in order: every stage before any twice."""
    by_stage: dict[str, list[int]] = {}
    for index, (_, stage, *_) in enumerate(order):
        by_stage.setdefault(stage, []).append(index)
    chosen: list[int] = []
    while len(chosen) < kills:
        stages = list(by_stage.values())
        chance.shuffle(stages)
        chosen += [chance.choice(indices) for indices in stages]
    return sorted(chosen[:kills])


def kill_at(
    loop: Loop, log: Path, target: int, order: Sequence[Occurrence], wait: float
) -> Occurrence | None:
    """Start the loop and kill it `wait` seconds into a stage; where it was, None: it had ended."""
    process = loop.start(log)
    deadline = time.monotonic() + HANGS_SECONDS
    before = set(order[:target])
    while before - {occurrence for occurrence, _ in read_ends(log)} and process.poll() is None:
        if time.monotonic() > deadline:
            break
        time.sleep(0.002)
    end = time.monotonic() + wait
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.002)
    if process.poll() is not None:
        return None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {occurrence for occurrence, _ in read_ends(log)}
    return next((occurrence for occurrence in order if occurrence not in done), ("after", "all"))


def parts(store: Path) -> dict[str, tuple[int, int]]:
    """Finished parts, by what changes when they are written again."""
    found = {}
    for path in store.glob("*/*/**/*"):
        name = str(path.relative_to(store))
        # Weights are written by one step of `train`, and again if that is killed. What a killed
        # process was writing is swept by the next one.
        if path.is_file() and not re.search(r"(^|/)(\.tmp|state|model)/|\.lock$|^reports/", name):
            status = path.stat()
            found[name] = (status.st_ino, status.st_mtime_ns)
    return found


def newest_states(store: Path) -> dict[str, int]:
    """The last saved step of each training that is under way."""
    found: dict[str, int] = {}
    for path in store.glob("train/*/state/step-*.json"):
        step = int(path.stem.removeprefix("step-"))
        key = path.parent.parent.name
        found[key] = max(step, found.get(key, 0))
    return found


def check_after_kill(loop: Loop, faults: Faults) -> None:
    """Nothing half-written is to be seen, and no process is left."""
    try:
        verify_quietly(loop.store)
    except UserError as error:
        faults.append(str(error))
    time.sleep(0.2)
    faults.expect(not survivors(loop.mark), f"left running: {survivors(loop.mark)}")


def verify_quietly(store: Path) -> None:
    if (store / "store.json").exists():
        verify(Store(str(store)))


def survivors(mark: str) -> list[str]:
    """Command lines of the processes that a loop has started and that still run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(CHAOS) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue
    return found


def check_end(loop: Loop, calm: Loop, faults: Faults) -> None:
    """The end is that of an undisturbed run, with nothing left over."""
    kept, wanted = digests(loop.store), digests(calm.store)
    faults.expect(set(kept) == set(wanted), f"other artifacts: {set(kept) ^ set(wanted)}")
    differ = [place for place in wanted if kept.get(place) != wanted[place]]
    faults.expect(not differ, f"other contents: {differ}")
    registered = [{p.name for p in one.store.glob("gate/*")} for one in (loop, calm)]
    faults.expect(registered[0] == registered[1], "other registrations")
    left = [str(p) for p in loop.folder.rglob("*") if p.name == ".tmp" or p.suffix == ".part"]
    faults.expect(not left, f"temporary folders: {left}")
    drafts = [p for p in loop.store.glob("*/*") if p.parent.name != "reports"]
    drafts = [p for p in drafts if not (p / "manifest.json").exists()]
    faults.expect(not drafts, f"unfinished: {drafts}")
    temporary = [p.name for p in loop.temporary.iterdir() if not p.name.startswith("torch")]
    faults.expect(not temporary, f"in the system's temporary folder: {temporary}")
    with unused(loop.store / IN_USE) as free:
        faults.expect(free, "the store is still locked")


def check_services(environment: Mapping[str, str], checkpoints: int) -> Iterator[str]:
    """Every version, run or point that the servers have twice, and every run that never ends."""
    client = MlflowClient(tracking_uri=environment["MLFLOW_TRACKING_URI"])
    versions = [v.tags[KEY] for v in client.search_model_versions()]
    if sorted(Counter(versions).values()) != [1] * checkpoints:
        yield f"registered versions of {checkpoints} checkpoints: {Counter(versions)}"
    experiment = client.get_experiment_by_name("hermesflow-quick")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    names = Counter(run.info.run_name for run in runs)
    if sorted(names.values()) != [1] * (checkpoints + 1):
        yield f"MLflow runs: {names}"
    for run in runs:
        if run.info.status != "FINISHED":
            yield f"MLflow run {run.info.run_name} is {run.info.status}"
        for metric in run.data.metrics:
            if metric.startswith("system/"):
                continue
            steps = Counter(p.step for p in client.get_metric_history(run.info.run_id, metric))
            if max(steps.values()) > 1:
                yield f"{run.info.run_name}: {metric} has points twice: {steps}"
    api = environment["PREFECT_API_URL"]
    body = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}}
    for flow_run in ask(f"{api}/flow_runs/filter", body):
        yield f"Prefect run {flow_run['name']} is still {flow_run['state_type']}"


@contextmanager
def prepared(folder: Path, plain: bool) -> Iterator[Loop]:
    """A folder to run the loop in, with servers unless it is to be plain."""
    for name in ("tmp", "cache"):
        (folder / name).mkdir(parents=True)
    (folder / "models").symlink_to(ROOT / "models")
    if plain:
        yield Loop(folder, command(folder / "store", ITERATIONS, threads=THREADS))
        return
    config = yaml.safe_load(QUICK.read_text(encoding="utf-8"))
    config |= {"store": "store", "iterations": ITERATIONS}
    config["runtime"]["threads"] = THREADS
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    state = folder / ".hermesflow"
    urls = ensure_servers(state, free_port(), free_port())
    arguments = [sys.executable, "-m", "flows.cli", "run", "config.yaml"]
    try:
        with logged_in(urls):
            yield Loop(folder, arguments, client_environment(urls, state))
    finally:
        stop_all(state)


def run_to_end(loop: Loop, log: Path, faults: Faults) -> None:
    process = loop.start(log)
    try:
        code = process.wait(HANGS_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    faults.expect(code == 0, f"the loop ended with {code}:\n{tail}")


def disturb(
    loop: Loop, undisturbed: Sequence[tuple[Occurrence, float]], kills: int, chance: random.Random
) -> tuple[Counter[str], Faults]:
    """Kill the loop so often, let it end, and see that no finished work was done again."""
    order, faults, hits = [o for o, _ in undisturbed], Faults(), Counter[str]()
    finished: dict[str, tuple[int, int]] = {}
    for number, target in enumerate(aims(order, kills, chance), 1):
        log = loop.folder / f"kill-{number}.log"
        states = newest_states(loop.store)
        wait = chance.uniform(0.0, 1.0) * max(0.02, undisturbed[target][1])
        hit = kill_at(loop, log, target, order, wait)
        if hit is None:
            faults.expect(False, f"start {number} ended by itself: {log}")
            break
        hits[hit[1]] += 1
        print(
            f"kill {number:3} {wait:5.2f} s into {' '.join(order[target])}: hit {' '.join(hit)}",
            flush=True,
        )
        check_after_kill(loop, faults)
        there = parts(loop.store)
        again = [name for name, what in finished.items() if there.get(name) != what]
        faults.expect(not again, f"written again: {again}")
        text = log.read_text(encoding="utf-8", errors="replace")
        for step in map(int, CONTINUED.findall(text)):
            faults.expect(step in states.values(), f"training went on after {step}, not {states}")
        finished = there
    log = loop.folder / "last.log"
    run_to_end(loop, log, faults)
    there = parts(loop.store)
    again = [name for name, what in finished.items() if there.get(name) != what]
    faults.expect(not again, f"written again: {again}")
    return hits, faults


def main(arguments: Sequence[str] | None = None) -> int:
    """The matrix; 1 if there was any fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="without Prefect and MLflow")
    options = parser.parse_args(arguments)
    started, root = time.monotonic(), Path(tempfile.mkdtemp(prefix="hermesflow-chaos-"))
    kind = "without servers" if options.plain else "with Prefect and MLflow"
    print(f"{options.kills} kills {kind}, seed {options.seed}, in {root}", flush=True)
    faults = Faults()
    with prepared(root / "calm", True) as calm:
        run_to_end(calm, root / "calm.log", faults)
        undisturbed = read_ends(root / "calm.log")
        print(f"undisturbed: {len(undisturbed)} stages, {time.monotonic() - started:.0f} s")
        with prepared(root / "chaos", options.plain) as loop:
            hits, found = disturb(loop, undisturbed, options.kills, random.Random(options.seed))
            faults += found
            check_end(loop, calm, faults)
            if not options.plain:
                for fault in check_services(loop.environment, ITERATIONS + 1):
                    faults.expect(False, fault)
    print("kills by stage: " + ", ".join(f"{n} {stage}" for stage, n in sorted(hits.items())))
    missed = {stage for (_, stage, *_), _ in undisturbed} - set(hits)
    print(f"stages without a kill: {', '.join(sorted(missed)) or 'none'}")
    verdict = "no fault" if not faults else f"{len(faults)} faults, logs in {root}"
    print(f"{sum(hits.values())} kills, {time.monotonic() - started:.0f} s: {verdict}", flush=True)
    if not faults:
        shutil.rmtree(root)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
