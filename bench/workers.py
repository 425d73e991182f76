"""What a second process brings: `python -m bench.workers STAGE RECORDS MORE_RECORDS`.

Runs a stage of the built-in world over some and over more records, in one process and in two of one
thread each. What the difference of both sizes takes is free of what each start takes.
"""

import json
import os
import resource
import sys
import time
from tempfile import TemporaryDirectory

import tasks.sample
from bench.streams import checkpoint
from core.config import load_config
from core.stage import Stage, run_stage
from core.store import Store
from flows.executors.base import Job, Step
from flows.executors.local import LocalProcesses
from tasks.pool import POOL

STAGES = {"sample-captions": tasks.sample.CAPTIONS, "sample-images": tasks.sample.IMAGES}
PROCESSES = (1, 2)


def measure(stage: Stage, records: int, processes: int) -> dict[str, float]:
    """Seconds of clock and CPU that a stage takes; processes begin anew each time."""
    config = load_config(
        "pipeline.yaml",
        {"data.pool_records": records, "runtime.threads": 1, "runtime.processes": processes},
    )
    with TemporaryDirectory(prefix="hermesflow-") as folder:
        store = Store(folder)
        inputs = {"pool": run_stage(POOL, config, store, {}).ref, "checkpoint": checkpoint(store)}
        before, started = _cpu_seconds(), time.perf_counter()
        stored = config.model_copy(update={"store": folder})
        LocalProcesses().run(Job(stage, stored, inputs, Step(0, "base")))
        seconds = time.perf_counter() - started
    return {
        "records": records,
        "processes": processes,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(_cpu_seconds() - before, 2),
    }


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    """A line for each run, then how much faster two are."""
    name, first, last = sys.argv[1], *map(int, sys.argv[2:4])
    stage, took = STAGES[name], dict[tuple[int, int], float]()
    for records in (first, last):
        for processes in PROCESSES:
            row = measure(stage, records, processes)
            took[records, processes] = row["seconds"]
            print(json.dumps(row), flush=True)
    one, two = (took[last, processes] - took[first, processes] for processes in PROCESSES)
    print(f"two processes do {one / two:.2f} times as much as one, on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
