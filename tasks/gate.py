"""Stage `gate`: whether a checkpoint may become the champion.

Pure: its inputs are the candidate and what it is held against (nothing for a first version), its
output is the decision. Who the opponent is, and what the registry is told, is the flow's business.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from core.artifact import Artifact
from core.command import stage_command
from core.stage import Stage, StageContext
from data.tables import read_table
from evals.benchmarks.changes import BenchmarkChange, benchmark_change
from evals.gate import JudgedBy, judge

DECISION = "decision.json"
FIRST = "first version"
UNREADABLE = (
    "not promoted: first version, but its answers about real pictures are no better than chance"
)
ITEMS = "items.parquet"  # of a benchmark
SCORES = ("understanding", "generation", "gap")


def _body(context: StageContext) -> Mapping[str, object]:
    evaluation = context.input("evaluation")
    figures, results = _figures(evaluation), evaluation.manifest["results"]
    judged = JudgedBy(results["judge"], results["independent"], results["why"])
    scores = {name: figures[name]["value"] for name in SCORES}
    document: dict[str, Any] = {"scores": scores, "judge": judged.name}
    if context.inputs["baseline"]:
        config, baseline = context.config, context.input("baseline")
        compared, skipped = _benchmark_changes(context)
        tables = _records(evaluation), _records(baseline)
        decision = judge(*tables, config.gate, config.evaluation, judged, compared)
        document |= asdict(decision)
        document["reason"] += skipped
    # U is above what guesses would get, beyond its interval.
    elif figures["understanding"]["low"] > figures["chance"]["value"]:
        document |= {"promote": True, "reason": FIRST}
    else:
        document |= {"promote": False, "reason": UNREADABLE}
    with context.draft.write(DECISION) as path:
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return {"promote": document["promote"], "reason": document["reason"]}


GATE = Stage(
    "gate",
    2,
    config_keys=("gate", "evaluation.bootstrap_samples", "evaluation.confidence"),
    inputs=("checkpoint", "evaluation", "benchmarks", "baseline", "baseline_benchmarks"),
    body=_body,
    retention="verdict",
)


def read_decision(gate: Artifact) -> dict[str, Any]:
    """`promote`, `reason`, `scores`, `judge` and, after a comparison, the changes."""
    document: dict[str, Any] = json.loads(gate.path(DECISION).read_text(encoding="utf-8"))
    return document


def _benchmark_changes(context: StageContext) -> tuple[list[BenchmarkChange], str]:
    """Changes at the benchmarks that both were scored by, and a remark about the others."""
    after, before = (
        {one.manifest["results"]["name"]: one for one in context.inputs[name]}
        for name in ("benchmarks", "baseline_benchmarks")
    )
    changes, skipped = [], []
    for name in dict.fromkeys((*after, *before)):
        both = [side[name] for side in (after, before) if name in side]
        # Of the same items, judges and sampling.
        if len(both) < 2 or len({one.manifest["results"]["terms"] for one in both}) > 1:
            skipped.append(name)
            continue
        new, old = (read_table(one.path(ITEMS), "benchmark_items") for one in both)
        changes.append(benchmark_change(name, new, old, context.config.evaluation))
    remark = "; not compared, since items or settings differ or only one was scored: "
    return changes, remark + ", ".join(skipped) if skipped else ""


def _records(evaluation: Artifact) -> pa.Table:
    return read_table(evaluation.path("records.parquet"), "record_metrics")


def _figures(evaluation: Artifact) -> dict[str, dict[str, Any]]:
    table = read_table(evaluation.path("metrics.parquet"), "metrics")
    return {row["name"]: row for row in table.to_pylist() if row["group"] == "all"}


if __name__ == "__main__":
    sys.exit(stage_command({"gate": GATE}))
