"""Whether own answers about drawings move with those of the judge, by type of question.

Rising own scores that the judge does not confirm are what learning to please oneself looks like.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from core.config import Evaluation
from evals.statistics import Bootstrap, Estimate
from evals.vqa import ANSWERED

SUBJECTS = {"self": "self_score", "generated": "generation"}
COLUMNS = ["record_id", "subject", "type", "status", "right"]
Changes = Mapping[tuple[str, str], Estimate]


def type_changes(after: pd.DataFrame, before: pd.DataFrame, evaluation: Evaluation) -> Changes:
    """Paired changes of own score and judge's by (metric, `type/...`), from `eval_answers` rows.

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
