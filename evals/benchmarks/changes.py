"""Whether a checkpoint got worse at a benchmark: the change of one figure, paired by unit.

Figures are taken from the stored items alone, so neither files nor judges are needed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from core.benchmarks import BENCHMARKS
from core.config import Evaluation
from core.errors import UserError
from evals.benchmarks.base import PARTLY, UNSCORED
from evals.benchmarks.catalog import benchmark_class
from evals.benchmarks.figures import ALL, Figure
from evals.statistics import Bootstrap, Estimate, Values

KEY = ["item_id", "sample"]


@dataclass(frozen=True)
class BenchmarkChange:
    """The headline figure of two checkpoints, and its change with the paired interval."""

    name: str
    figure: str
    before: float
    after: float
    change: Estimate

    def sentence(self, lost: bool) -> str:
        """`pope f1 from 1 to 0, by -1 [-1, -1], a loss beyond its interval`."""
        value, low, high = (
            f"{number:+.4g}" if number else "0"
            for number in (self.change.value, self.change.low, self.change.high)
        )
        return (
            f"{self.name} {self.figure} from {self.before:.4g} to {self.after:.4g}, by {value} "
            f"[{low}, {high}], {'a' if lost else 'no'} loss"
        )


def benchmark_change(
    name: str, after: pa.Table, before: pa.Table, evaluation: Evaluation
) -> BenchmarkChange:
    """The change from one table of items to another; of items that were scored in both.

    UserError if there is none.
    """
    new, old = common_items(after.to_pandas(), before.to_pandas())
    if new.empty:
        raise UserError(f"benchmark {name}: no item was scored in both results")
    figures = headline(name, old), headline(name, new)
    old_value, new_value, change = (
        figure.estimate(Bootstrap.of(evaluation)) for figure in (*figures, difference(*figures))
    )
    figure_name = BENCHMARKS[name].headline
    return BenchmarkChange(name, figure_name, old_value.value, new_value.value, change)


def headline(name: str, rows: pd.DataFrame) -> Figure:
    """The figure that stands for a benchmark, of scored items."""
    wanted = BENCHMARKS[name].headline
    found = benchmark_class(name).item_figures(rows)
    return next(one for one in found if one.group == ALL and one.name == wanted)


def common_items(after: pd.DataFrame, before: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of items that have a score in both, in the same order.

    What was answered in part is no pair: its score is one of other questions than the other's.
    """
    new, old = (
        rows[~rows["status"].isin((*UNSCORED, PARTLY))].set_index(KEY).sort_index()
        for rows in (after, before)
    )
    both = new.index.intersection(old.index)
    return new.loc[both].reset_index(), old.loc[both].reset_index()


def difference(before: Figure, after: Figure) -> Figure:
    """The change as a figure: a unit is resampled in both together."""
    widths = [part_RC.shape[1] for part_RC in before.strata_RC]

    def statistic(sums: Sequence[Values]) -> Values:
        old = [part_SC[:, :width] for part_SC, width in zip(sums, widths, strict=True)]
        new = [part_SC[:, width:] for part_SC, width in zip(sums, widths, strict=True)]
        return np.asarray(after.statistic(new) - before.statistic(old))

    strata_RC = [
        np.hstack([old_RC, new_RC])
        for old_RC, new_RC in zip(before.strata_RC, after.strata_RC, strict=True)
    ]
    return Figure(before.name, before.group, strata_RC, statistic)
