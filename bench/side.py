"""One side of a hot path in a process of its own: `python -m bench.side PATH SIDE SCALE RESULT`.

Builds and warms up, then does the work once for every line on stdin and says how long it took. At
the end of stdin it writes what came out and says the most memory that the process has held.
"""

import json
import sys
import time
from typing import TYPE_CHECKING, cast

import numpy as np

from bench.paths import PATHS, SCALES
from core.runtime import peak_memory_bytes
from models.registry import use_threads

if TYPE_CHECKING:
    from bench.paths import Side


def main() -> None:
    """Answer the parent, a JSON document a line."""
    name, side, scale, result_file = sys.argv[1:]
    use_threads(0)
    path, which = PATHS[name], cast("Side", side)
    call = path.build(SCALES[scale], which)
    loaded = peak_memory_bytes()
    print(json.dumps({"loaded": loaded}), flush=True)
    result = None
    for _ in sys.stdin:
        started = time.perf_counter()
        found = call()
        seconds = time.perf_counter() - started
        result = found if result is None else result
        print(json.dumps({"seconds": seconds}), flush=True)
    peak = peak_memory_bytes()
    if path.check is not None:
        result = path.check(SCALES[scale], which)()
    assert result is not None
    np.save(result_file, result)
    print(json.dumps({"peak": peak}), flush=True)


if __name__ == "__main__":
    main()
