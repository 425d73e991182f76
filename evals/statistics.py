"""Bootstrap intervals over records. Shapes: R records, S resamples, C columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.config import Evaluation
from data.metrics import Interval

Values = NDArray[np.float64]
WEIGHTS = 1 << 23
"""Of units in resamples that are held at once, so that memory does not grow with both."""


@dataclass(frozen=True)
class Estimate(Interval):
    """A mean over `count` records with its percentile interval."""

    count: int


@dataclass(frozen=True)
class Bootstrap:
    """How often records are resampled, as the model is fixed and they are not.

    One seed of all intervals, so that the gate, the table and the report say the same of the same
    change.
    """

    samples: int
    confidence: float
    seed: int = 0

    @classmethod
    def of(cls, evaluation: Evaluation) -> Bootstrap:
        """As a config has it."""
        return cls(evaluation.bootstrap_samples, evaluation.confidence)

    def mean(self, values_R: Values) -> Estimate:
        """Mean of per-record values; of changes of the same records, which are paired so."""
        return self.means(values_R[:, None])[0]

    def means(self, values_RC: Values) -> list[Estimate]:
        """As `mean` of each column, in the same resamples of the records."""
        count = len(values_RC)
        means_SC = self._sums(values_RC, np.random.default_rng(self.seed)) / count
        return [
            Estimate(float(value), float(low), float(high), count)
            for value, low, high in zip(values_RC.mean(0), *self._ends(means_SC), strict=True)
        ]

    def sums(
        self, strata_RC: Sequence[Values], statistic: Callable[[Sequence[Values]], Values]
    ) -> Estimate:
        """A statistic of column sums over units, which are resampled within each stratum.

        `statistic` takes the sums [S, C] of every stratum and gives [S]. `count` is that of units.
        """
        rng = np.random.default_rng(self.seed)
        value = float(statistic([part_RC.sum(0, keepdims=True) for part_RC in strata_RC])[0])
        low, high = self._ends(statistic([self._sums(part_RC, rng) for part_RC in strata_RC]))
        return Estimate(value, float(low), float(high), sum(map(len, strata_RC)))

    def _ends(self, values_S: Values) -> Values:
        tail = (1 - self.confidence) / 2
        return np.asarray(np.quantile(values_S, [tail, 1 - tail], axis=0))

    def _sums(self, part_RC: Values, rng: np.random.Generator) -> Values:
        """Column sums of every resample."""
        count = len(part_RC)
        chunk = max(1, WEIGHTS // count)
        sums = []
        for first in range(0, self.samples, chunk):
            size = min(chunk, self.samples - first)
            # Counts of each unit in a resample, so that a resample is one matrix row.
            weights_SR = rng.multinomial(count, np.full(count, 1 / count), size=size)
            # Of whole numbers the product would be taken one by one.
            sums.append(weights_SR.astype(np.float64) @ part_RC)
        return np.concatenate(sums)
