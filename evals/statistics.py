"""Bootstrap intervals over records. Shapes: R records, S resamples, C columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
BOOTSTRAP_SEED = 0
"""Of all intervals, so that the gate, the table and the report say the same of the same change."""
WEIGHTS = 1 << 23
"""Of units in resamples that are held at once, so that memory does not grow with both."""


@dataclass(frozen=True)
class Estimate:
    """A mean over records with its percentile interval."""

    value: float
    low: float
    high: float
    count: int


def bootstrap_mean(values_R: Values, *, samples: int, confidence: float, seed: int) -> Estimate:
    """Mean of per-record values; records are resampled, as the model is fixed and they are not."""
    columns_RC = values_R[:, None]
    return bootstrap_means(columns_RC, samples=samples, confidence=confidence, seed=seed)[0]


def bootstrap_means(
    values_RC: Values, *, samples: int, confidence: float, seed: int
) -> list[Estimate]:
    """As `bootstrap_mean` of each column, in the same resamples of the records."""
    count = len(values_RC)
    means_SC = _resampled_sums(values_RC, samples, np.random.default_rng(seed)) / count
    tail = (1 - confidence) / 2
    bounds_2C = np.quantile(means_SC, [tail, 1 - tail], axis=0)
    return [
        Estimate(float(value), float(low), float(high), count)
        for value, low, high in zip(values_RC.mean(axis=0), *bounds_2C, strict=True)
    ]


def bootstrap_difference(
    after_R: Values, before_R: Values, *, samples: int, confidence: float, seed: int
) -> Estimate:
    """Mean change of the same records; pairing takes the spread between records out."""
    return bootstrap_mean(after_R - before_R, samples=samples, confidence=confidence, seed=seed)


def bootstrap_sums(
    strata_RC: Sequence[Values],
    statistic: Callable[[Sequence[Values]], Values],
    *,
    samples: int,
    confidence: float,
    seed: int,
) -> Estimate:
    """A statistic of column sums over units, which are resampled within each stratum.

    `statistic` takes the sums [S, C] of every stratum and gives [S]. `count` is that of units.
    """
    rng = np.random.default_rng(seed)
    value = float(statistic([part_RC.sum(0, keepdims=True) for part_RC in strata_RC])[0])
    sums = [_resampled_sums(part_RC, samples, rng) for part_RC in strata_RC]
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistic(sums), [tail, 1 - tail])
    return Estimate(value, float(low), float(high), sum(map(len, strata_RC)))


def _resampled_sums(part_RC: Values, samples: int, rng: np.random.Generator) -> Values:
    count = len(part_RC)
    chunk = max(1, WEIGHTS // count)
    sums = []
    for first in range(0, samples, chunk):
        size = min(chunk, samples - first)
        # Counts of each unit in a resample, so that a resample is one matrix row.
        weights_SR = rng.multinomial(count, np.full(count, 1 / count), size=size)
        # Of whole numbers the product would be taken one by one.
        sums.append(weights_SR.astype(np.float64) @ part_RC)
    return np.concatenate(sums)
