"""Yes-no questions: POPE's counts of right and wrong, with their intervals.

Shapes: R units, C columns, S resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from evals.benchmarks.figures import Figure, Statistic, mean_of_groups, ratio, unit_sums
from evals.statistics import Values

COLUMNS = ("true_yes", "false_yes", "true_no", "false_no")


def _total(sums: Sequence[Values]) -> Values:
    return np.asarray(np.sum(sums, axis=0))


def _accuracy(sums: Sequence[Values]) -> Values:
    total_SC = _total(sums)
    return ratio(total_SC[:, 0] + total_SC[:, 2], total_SC[:, -1])


def _precision(sums: Sequence[Values]) -> Values:
    total_SC = _total(sums)
    return ratio(total_SC[:, 0], total_SC[:, 0] + total_SC[:, 1])


def _recall(sums: Sequence[Values]) -> Values:
    total_SC = _total(sums)
    return ratio(total_SC[:, 0], total_SC[:, 0] + total_SC[:, 3])


def _f1(sums: Sequence[Values]) -> Values:
    """The harmonic mean of precision and recall, from counts."""
    total_SC = _total(sums)
    return ratio(2 * total_SC[:, 0], 2 * total_SC[:, 0] + total_SC[:, 1] + total_SC[:, 3])


def _yes_ratio(sums: Sequence[Values]) -> Values:
    total_SC = _total(sums)
    return ratio(total_SC[:, 0] + total_SC[:, 1], total_SC[:, -1])


STATISTICS: dict[str, Statistic] = {
    "accuracy": _accuracy,
    "precision": _precision,
    "recall": _recall,
    "f1": _f1,
    "yes_ratio": _yes_ratio,
}


def yes_no_figures(rows: pd.DataFrame) -> list[Figure]:
    """Each statistic of each group, and the mean over groups, as is published.

    A prediction that is neither yes nor no counts as no yes; POPE makes none.
    """
    said, true = rows["prediction"] == "yes", rows["answer"] == "yes"
    counted = rows.assign(
        true_yes=said & true, false_yes=said & ~true, true_no=~said & ~true, false_no=~said & true
    )
    by_group = unit_sums(counted, COLUMNS)
    figures = [mean_of_groups(name, by_group, one) for name, one in STATISTICS.items()]
    for group, part in by_group.items():
        sums_RC = part.to_numpy(np.float64)
        figures += [Figure(name, group, [sums_RC], one) for name, one in STATISTICS.items()]
    return figures
