"""Results of lmms-eval's tasks, from the files that it writes (`*_results.json`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from data.metrics import Interval
from data.results import ALL, MALFORMED, Result, finite

PATTERN = "*_results.json"
START = "lmms-eval "  # begins the names of its tasks among benchmarks
NORMAL = 1.96  # standard errors to both sides, for 95 %


def read_lmms_results(path: Path) -> list[Result]:
    """A result for each task of a file; UserError for a file of another kind."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        settings, counts = document["config"], document["n-samples"]
        system = f"{settings['model']} {settings['model_args']}".strip()
        versions = {"lmms-eval": str(document.get("lmms_eval_version"))}
        return [
            Result(
                path.parent, START + task, system, {"lmms-eval": document["configs"].get(task)},
                versions, _figures(values), int(counts[task]["effective"]),
            )
            for task, values in document["results"].items()
            if task in counts
        ]  # fmt: skip
    except (*MALFORMED, RecursionError) as error:
        raise UserError(
            f"{path} is no result of lmms-eval ({type(error).__name__}: {error}); leave it out"
        ) from None


def _figures(values: Mapping[str, Any]) -> dict[tuple[str, str], Interval]:
    """Numbers by the names of their metrics, with normal intervals where there is an error."""
    found = {}
    for key, value in values.items():
        name, comma, kept = key.partition(",")
        if not comma or "_stderr" in name or isinstance(value, bool | str) or value is None:
            continue
        error = values.get(f"{name}_stderr,{kept}")
        around = NORMAL * error if isinstance(error, int | float) else 0.0
        found[name, ALL] = finite(value, value - around, value + around)
    return found
