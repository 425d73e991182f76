"""Whether own answers about drawings move with those of the judge, by type of question.

Rising own scores that the judge does not confirm are what learning to please oneself looks like.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from evals.statistics import BOOTSTRAP_SEED, Estimate, bootstrap_difference
from evals.vqa import ANSWERED

if TYPE_CHECKING:
    from core.config import Evaluation

SUBJECTS = {"self": "self_score", "generated": "generation"}
COLUMNS = ["record_id", "subject", "type", "status", "right"]
Changes = Mapping[tuple[str, str], Estimate]


def type_changes(after: pd.DataFrame, before: pd.DataFrame, evaluation: Evaluation) -> Changes:
    """Paired changes of own score and judge's by (metric, `type/...`), from `eval_answers` rows.

    Of records that have answers of the type in both tables; types without any have no change.
    """
    found: dict[tuple[str, str], Estimate] = {}
    new = dict(_by_type(after))
    for key, old_R in _by_type(before):
        if key not in new:
            continue
        new_R = new[key]
        both = old_R.index.intersection(new_R.index)
        if len(both):
            found[key] = bootstrap_difference(
                np.asarray(new_R[both], np.float64),
                np.asarray(old_R[both], np.float64),
                samples=evaluation.bootstrap_samples,
                confidence=evaluation.confidence,
                seed=BOOTSTRAP_SEED,
            )
    return found


def _by_type(answers: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.Series[float]]]:
    given = answers[answers["status"] == ANSWERED]
    for (subject, kind), part in given.groupby(["subject", "type"]):
        if subject in SUBJECTS:
            yield (SUBJECTS[subject], f"type/{kind}"), part.groupby("record_id")["right"].mean()
