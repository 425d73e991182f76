"""A stage that makes a part, and then hangs or goes on: `python -m tests.hanging STORE`."""

import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from core.config import load_config
from core.stage import Stage, StageContext, run_stage
from core.store import Store

STALL_MINUTES = 0.08
QUICK = Path(__file__).parent / "configs/quick.yaml"


def hang(store: str, *, hangs: bool) -> None:
    """Work for longer than the stage may be silent, then say nothing more."""

    def body(context: StageContext) -> Mapping[str, object]:
        with context.progress("work", 60) as bar:
            for _ in range(60):
                time.sleep(0.1)
                bar.update()
        with context.draft.write("part") as path:
            path.write_text("done", encoding="utf-8")
        if hangs:
            threading.Event().wait()
        return {}

    config = load_config(QUICK, {"store": store, "runtime.stall_minutes": STALL_MINUTES})
    run_stage(Stage("stuck", 1, (), (), body), config, Store(store), {})


if __name__ == "__main__":
    hang(sys.argv[1], hangs=True)
