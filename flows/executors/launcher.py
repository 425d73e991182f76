"""Starts the ranks of a job as torchrun does: `python -m flows.executors.launcher FOLDER`."""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from flows.executors.local import JOB, SAVE_SECONDS


def main(folder: str) -> int:
    """Run all ranks to their end; says which one was killed, if one was."""
    job = json.loads(Path(folder, JOB).read_text(encoding="utf-8"))
    # What it has to say of ranks that fail is said by the process that has started this one.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=job["num"],
        run_id="hermesflow",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=folder),
        virtual_local_rank=job["own_gpus"],
        shutdown_timeout=int(SAVE_SECONDS),
    )
    rank = ["-P", "-m", "flows.executors.rank", folder]
    try:
        elastic_launch(config, sys.executable)(*rank)
    except ChildFailedError as error:
        # SIGTERM is what the launcher ends the others with.
        for failure in error.failures.values():
            if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
                killed = {"rank": failure.local_rank, "signal": -failure.exitcode}
                print(json.dumps(killed), flush=True)
        return 1
    except SignalException:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
