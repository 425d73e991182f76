"""The gap by item response theory: the same question in both directions.

Shapes: R records, T types of questions, S resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from evals.statistics import Bootstrap, Estimate, Values

BOTH_RIGHT, READ_ALONE, DRAWN_ALONE, BOTH_WRONG = range(4)
FAIL, SUCCESS = 2.7, 1.05
"""How much failing, and succeeding, in both directions moves the log-odds of the gap."""


def item_gap(answers: pd.DataFrame, bootstrap: Bootstrap) -> Estimate | None:
    """Gap score of GapEval (arXiv 2602.02140) in 0 to 1, with an interval over records.

    A question about a record is an item in two directions: read, of the real picture, and drawn, as
    the judge answers about a drawing. In the two-dimensional model P(right) = sigmoid(theta - beta)
    of each direction, a type of question has the abilities theta_read and theta_drawn, and
    d = |theta_read - theta_drawn|; its gap is sigmoid(logit(d / (1 + d)) + 2.7 p(both wrong)
    - 1.05 p(both right)), and the score is the mean over types. This is what the published
    evaluation computes, with its constants and its fixed scale of difficulty. It fits theta with a
    prior that weighs as much as one of a thousand answers; here theta is the log-odds of all
    answers and half a right and half a wrong one, which stays finite if all are right. None without
    a question that was answered in both directions. Takes answered rows of `eval_answers`.
    """
    key = ["record_id", "type", "question"]
    real = answers[answers["subject"] == "real"][[*key, "right"]]
    drawn = answers[answers["subject"] == "generated"][[*key, "right"]]
    items = drawn.merge(real, on=key, suffixes=("_drawn", "_read"))
    if items.empty:
        return None
    outcome = 2 * (items["right_read"] < 1) + (items["right_drawn"] < 1)
    # All outcomes of every type, so that columns are T times four.
    cells = pd.MultiIndex.from_product([sorted(items["type"].unique()), range(4)])
    counts = pd.crosstab(items["record_id"], [items["type"], outcome])
    counts_RC = counts.reindex(columns=cells, fill_value=0).to_numpy(np.float64)
    return bootstrap.sums([counts_RC], _score)


def _score(counts: Sequence[Values]) -> Values:
    """[S] from the outcomes [S,4T]; a type that a resample lacks is left out of its mean."""
    [counts_SC] = counts
    counts_ST4 = counts_SC.reshape(len(counts_SC), -1, 4)
    total_ST = counts_ST4.sum(axis=2)
    read_ST = counts_ST4[..., [BOTH_RIGHT, READ_ALONE]].sum(axis=2)
    drawn_ST = counts_ST4[..., [BOTH_RIGHT, DRAWN_ALONE]].sum(axis=2)
    ability = (np.log((right + 0.5) / (total_ST - right + 0.5)) for right in (read_ST, drawn_ST))
    difference_ST = np.abs(np.subtract(*ability))
    share_ST4 = counts_ST4 / np.maximum(total_ST, 1)[..., None]
    shift_ST = FAIL * share_ST4[..., BOTH_WRONG] - SUCCESS * share_ST4[..., BOTH_RIGHT]
    # logit(d / (1 + d)) is log d.
    gap_ST = difference_ST / (difference_ST + np.exp(-shift_ST))
    there_ST = total_ST > 0
    mean_S: Values = (gap_ST * there_ST).sum(axis=1) / there_ST.sum(axis=1)
    return mean_S
