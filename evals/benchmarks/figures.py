"""Figures as statistics of sums over units, so that one bootstrap gives all their intervals.

Shapes: R units of a stratum, C columns, S resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evals.statistics import Bootstrap, Estimate, Values

ALL = "all"
Statistic = Callable[[Sequence[Values]], Values]
"""From the column sums [S, C] of every stratum to values [S]."""


@dataclass(frozen=True)
class Figure:
    """A figure of a group of items; units are resampled within each stratum by itself."""

    name: str
    group: str
    strata_RC: Sequence[Values]
    statistic: Statistic

    def estimate(self, bootstrap: Bootstrap) -> Estimate:
        """Its value and interval."""
        return bootstrap.sums(self.strata_RC, self.statistic)


def unit_sums(rows: pd.DataFrame, columns: Sequence[str]) -> dict[str, pd.DataFrame]:
    """For each group the sums of columns over each unit; the last column counts items."""
    counted = rows.assign(_count=1.0)
    return {
        str(group): part.groupby("unit")[[*columns, "_count"]].sum().astype(np.float64)
        for group, part in counted.groupby("group")
    }


def strata(rows: pd.DataFrame, columns: Sequence[str]) -> dict[str, Values]:
    """As `unit_sums`, by group arrays [R, C]."""
    sums = unit_sums(rows, columns)
    return {group: part.to_numpy(np.float64) for group, part in sums.items()}


def share_of(
    numerator: Sequence[float], denominator: Sequence[float], scale: float = 1.0
) -> Statistic:
    """Quotient of weighted sums of columns, whatever their stratum.

    0 where both are 0, as in scikit-learn and lmms-eval.
    """

    def statistic(sums: Sequence[Values]) -> Values:
        total_SC = np.sum(sums, axis=0)
        above, below = (total_SC @ np.asarray(weights) for weights in (numerator, denominator))
        return np.asarray(scale * above / np.where(below == 0, 1, below))

    return statistic


def mean_of(column: int = 0, scale: float = 1.0) -> Statistic:
    """Mean over all items of a column, whatever their stratum; the last column counts them."""

    def statistic(sums: Sequence[Values]) -> Values:
        total_SC = np.sum(sums, axis=0)
        return np.asarray(scale * total_SC[:, column] / np.maximum(total_SC[:, -1], 1))

    return statistic


def mean_of_groups(name: str, by_group: Mapping[str, pd.DataFrame], part: Statistic) -> Figure:
    """Mean of a statistic of each group, where groups share units, such as pictures.

    `by_group` are sums by unit. A unit is resampled in all groups together, as they are not
    independent.
    """
    wide = pd.concat(list(by_group.values()), axis=1).fillna(0.0)
    num_columns = wide.shape[1] // len(by_group)

    def statistic(sums: Sequence[Values]) -> Values:
        columns = range(0, sums[0].shape[1], num_columns)
        parts = [part([sums[0][:, first : first + num_columns]]) for first in columns]
        return np.asarray(np.mean(parts, axis=0))

    return Figure(name, ALL, [wide.to_numpy(np.float64)], statistic)


def score_figures(rows: pd.DataFrame, name: str, scale: float = 1.0) -> list[Figure]:
    """Mean score over all items, and over those of each group where there are several."""
    by_group = strata(rows, ["score"])
    figures = [Figure(name, ALL, [np.concatenate(list(by_group.values()))], mean_of(0, scale))]
    if len(by_group) > 1:
        figures += [
            Figure(name, group, [part], mean_of(0, scale)) for group, part in by_group.items()
        ]
    return figures


def mean_of_strata(part: Statistic) -> Statistic:
    """Mean of a statistic of each stratum."""

    def statistic(sums: Sequence[Values]) -> Values:
        return np.asarray(np.mean([part([sums_SC]) for sums_SC in sums], axis=0))

    return statistic


def category_figures(rows: pd.DataFrame) -> list[Figure]:
    """Share of right pictures by category, their mean, and the share of all pictures."""
    by_tag = strata(rows, ["score"])
    parts = list(by_tag.values())
    return [
        Figure("overall", ALL, parts, mean_of_strata(mean_of())),
        Figure("right", ALL, parts, mean_of()),
        *(Figure("right", tag, [part], mean_of()) for tag, part in by_tag.items()),
    ]
