"""The gate between a candidate and the champion: paired changes on the same records and items.

Shapes: R records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.config import Evaluation, Gate
from core.errors import UserError
from evals.benchmarks.changes import BenchmarkChange
from evals.statistics import Estimate, Values, bootstrap_difference


@dataclass(frozen=True)
class GateDecision:
    """Whether the candidate may replace the champion, in one sentence and in numbers."""

    promote: bool
    reason: str
    generation_gain: Estimate
    understanding_change: Estimate
    benchmarks: Sequence[BenchmarkChange] = ()


def judge(
    candidate: pa.Table,
    champion: pa.Table,
    gate: Gate,
    evaluation: Evaluation,
    seed: int,
    benchmarks: Sequence[BenchmarkChange] = (),
) -> GateDecision:
    """Decide from two `record_metrics` tables; UserError unless they hold the same records.

    With `gate.beyond_interval` the gain must be established by the lower end of its interval, and
    only a loss established by the upper end of its own counts; without it the values decide. A
    loss at any of the benchmarks blocks.
    """
    changes = paired_changes(candidate, champion, evaluation, seed)
    gain, change = changes["generation"], changes["understanding"]
    gained = gain.low if gate.beyond_interval else gain.value
    kept = change.high if gate.beyond_interval else change.value
    rises = gained > gate.min_generation_gain
    lost = kept < -gate.max_understanding_loss
    worse = [_is_loss(one.change, gate) for one in benchmarks]
    promote = rises and not lost and not any(worse)
    sentence = (
        f"{'promoted' if promote else 'not promoted'}: "
        f"G changed by {_show(gain)}, which {'exceeds' if rises else 'does not exceed'} the "
        f"required {gate.min_generation_gain:+.3f}, and U by {_show(change)}, which is "
        f"{'a' if lost else 'no'} loss beyond the allowed {gate.max_understanding_loss:.3f} "
        f"(judged by the {'intervals' if gate.beyond_interval else 'values'})"
    )
    beyond = " beyond its interval" if gate.beyond_interval else ""
    parts = [one.sentence(loss) + beyond for one, loss in zip(benchmarks, worse, strict=True)]
    return GateDecision(promote, "; ".join([sentence, *parts]), gain, change, benchmarks)


def _is_loss(change: Estimate, gate: Gate) -> bool:
    return (change.high if gate.beyond_interval else change.value) < 0


def paired_changes(
    after: pa.Table, before: pa.Table, evaluation: Evaluation, seed: int
) -> Mapping[str, Estimate]:
    """Changes of understanding, generation and gap from one `record_metrics` table to another.

    Rows are joined by record_id; UserError unless both hold the same records.
    """
    old_R, new_R = (_scores(table) for table in _joined(before, after))
    return {
        name: bootstrap_difference(
            new_R[name],
            old_R[name],
            samples=evaluation.bootstrap_samples,
            confidence=evaluation.confidence,
            seed=seed,
        )
        for name in new_R
    }


def same_records(a: pa.Table, b: pa.Table) -> bool:
    """Whether two tables hold the same record ids, in whatever order."""
    return set(a["record_id"].to_pylist()) == set(b["record_id"].to_pylist())


def _joined(before: pa.Table, after: pa.Table) -> tuple[pa.Table, pa.Table]:
    if not same_records(before, after):
        ids = [set(table["record_id"].to_pylist()) for table in (before, after)]
        example = min(ids[0] ^ ids[1])
        raise UserError(
            f"the two checkpoints were judged on different records ({len(ids[0] - ids[1])} only "
            f"before, {len(ids[1] - ids[0])} only after, {example!r} is one); evaluate both on the "
            "same held-out data"
        )
    return before.sort_by("record_id"), after.sort_by("record_id")


def _scores(table: pa.Table) -> dict[str, Values]:
    # Averaged in double precision: a gate must not turn on the rounding of the stored floats.
    understanding_R, generation_R = (
        np.asarray(pc.cast(table[name], pa.float64())) for name in ("understanding", "generation")
    )
    return {
        "understanding": understanding_R,
        "generation": generation_R,
        "gap": understanding_R - generation_R,
    }


def _show(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"
