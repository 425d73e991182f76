"""The gate between a candidate and the champion: paired changes on the same records and items.

Shapes: R records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from core.config import Evaluation, Gate
from core.errors import UserError
from data.metrics import METRICS
from evals.benchmarks.changes import BenchmarkChange
from evals.statistics import Bootstrap, Estimate, Values
from evals.vqa import ANSWERED

SUBJECTS = {"self": "self_score", "generated": "generation"}
ANSWER_COLUMNS = ["record_id", "subject", "type", "status", "right"]  # that `type_changes` reads
PAIRED = tuple(metric.name for metric in METRICS if metric.paired)


@dataclass(frozen=True)
class GateDecision:
    """Whether the candidate may replace the champion, in one sentence and in numbers."""

    promote: bool
    reason: str
    generation_gain: Estimate
    understanding_change: Estimate
    benchmarks: Sequence[BenchmarkChange] = ()


@dataclass(frozen=True)
class JudgedBy:
    """Who has looked at drawings, as an evaluation has it in its results."""

    name: str
    independent: bool
    why: str


def judge(
    candidate: pa.Table,
    champion: pa.Table,
    gate: Gate,
    evaluation: Evaluation,
    judged: JudgedBy,
    benchmarks: Sequence[BenchmarkChange] = (),
) -> GateDecision:
    """Decide from two `record_metrics` tables, on the records that both were scored on.

    With `gate.beyond_interval` the gain must be established by the lower end of its interval, and
    only a loss established by the upper end of its own counts; without it the values decide. A
    loss at any of the benchmarks blocks. Without an independent judge nothing is shown about
    drawing, and nothing is promoted unless `gate.own_taste` says so.
    """
    changes = paired_changes(candidate, champion, evaluation)
    gain, change = changes["generation"], changes["understanding"]
    gained = gain.low if gate.beyond_interval else gain.value
    kept = change.high if gate.beyond_interval else change.value
    rises = gained > gate.min_generation_gain
    lost = kept < -gate.max_understanding_loss
    ends = [(one.change.high, one.change.value) for one in benchmarks]
    worse = [(high if gate.beyond_interval else value) < 0 for high, value in ends]
    seen = judged.independent or gate.own_taste
    promote = rises and not lost and not any(worse) and seen
    name = "G" if judged.independent else "G by its own taste"
    sentence = (
        f"{'promoted' if promote else 'not promoted'}: "
        f"{'' if judged.independent else _own_taste(judged, gate)}"
        f"{name} changed by {gain.signed()}, which "
        f"{'exceeds' if rises else 'does not exceed'} the required "
        f"{gate.min_generation_gain:+.3f}, and U by {change.signed()}, which is "
        f"{'a' if lost else 'no'} loss beyond the allowed {gate.max_understanding_loss:.3f} "
        f"(judged by the {'intervals' if gate.beyond_interval else 'values'}"
        f"{_left_out(changes, candidate, champion)})"
    )
    beyond = " beyond its interval" if gate.beyond_interval else ""
    parts = [one.sentence(loss) + beyond for one, loss in zip(benchmarks, worse, strict=True)]
    return GateDecision(promote, "; ".join([sentence, *parts]), gain, change, benchmarks)


def _left_out(changes: Mapping[str, Estimate], *tables: pa.Table) -> str:
    """What to say of records that only one of the tables has."""
    lost = max(table.num_rows for table in tables) - changes["generation"].count
    return f"; {lost} records that only one of them was scored on are left out" if lost else ""


def _own_taste(judged: JudgedBy, gate: Gate) -> str:
    shown = f"that drawing improved is not shown, as only {judged.name} has looked"
    if gate.own_taste:
        return f"{shown}, which gate.own_taste allows; "
    return f"{shown} ({judged.why}); choose an independent evaluation.judge; "


def paired_changes(
    after: pa.Table, before: pa.Table, evaluation: Evaluation
) -> Mapping[str, Estimate]:
    """Changes of each score of `PAIRED` and the gap between two `record_metrics` tables.

    Rows are joined by record_id, and records that only one table has are left out: nobody has
    answered anything about them there. UserError if none is in both.
    """
    old_R, new_R = (_scores(table) for table in _joined(before, after))
    bootstrap = Bootstrap.of(evaluation)
    return {name: bootstrap.mean(new_R[name] - old_R[name]) for name in new_R}


def comparable(a: pa.Table, b: pa.Table) -> bool:
    """Whether most records of each table are in the other; a few may lack answers in one."""
    both = len(set(a["record_id"].to_pylist()) & set(b["record_id"].to_pylist()))
    return 2 * both > max(int(a.num_rows), int(b.num_rows))


def _joined(before: pa.Table, after: pa.Table) -> tuple[pa.Table, pa.Table]:
    both = set(before["record_id"].to_pylist()) & set(after["record_id"].to_pylist())
    if not both:
        raise UserError(
            f"the two checkpoints were judged on different records ({before.num_rows} before, "
            f"{after.num_rows} after, none in both); evaluate both on the same held-out data"
        )
    ids = pa.array(sorted(both))
    old, new = (
        table.filter(pc.is_in(table["record_id"], value_set=ids)).sort_by("record_id")
        for table in (before, after)
    )
    return old, new


def _scores(table: pa.Table) -> dict[str, Values]:
    # Averaged in double precision: a gate must not turn on the rounding of the stored floats.
    found = {name: np.asarray(pc.cast(table[name], pa.float64())) for name in PAIRED}
    return found | {"gap": found["understanding"] - found["generation"]}


def type_changes(
    after: pd.DataFrame, before: pd.DataFrame, evaluation: Evaluation
) -> dict[tuple[str, str], Estimate]:
    """Whether own answers about drawings move with those of the judge, by type of question.

    Rising own scores that the judge does not confirm are what learning to please oneself looks
    like. Paired changes of own score and judge's by (metric, `type/...`), from `eval_answers` rows.

    Of records that have answers of the type in both tables; types without any have no change.
    """
    found: dict[tuple[str, str], Estimate] = {}
    new, bootstrap = dict(_by_type(after)), Bootstrap.of(evaluation)
    for key, old_R in _by_type(before):
        if key not in new:
            continue
        new_R = new[key]
        both = old_R.index.intersection(new_R.index)
        if len(both):
            after_R, before_R = (np.asarray(one[both], np.float64) for one in (new_R, old_R))
            found[key] = bootstrap.mean(after_R - before_R)
    return found


def _by_type(answers: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.Series[float]]]:
    given = answers[answers["status"] == ANSWERED]
    for (subject, kind), part in given.groupby(["subject", "type"]):
        if subject in SUBJECTS:
            yield (SUBJECTS[subject], f"type/{kind}"), part.groupby("record_id")["right"].mean()
