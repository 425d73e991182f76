"""Bootstrap intervals over records. Shapes: R records, S resamples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over records with its percentile interval."""

    value: float
    low: float
    high: float
    count: int


def bootstrap_mean(values_R: Values, *, samples: int, confidence: float, seed: int) -> Estimate:
    """Mean of per-record values; records are resampled, as the model is fixed and they are not."""
    count = len(values_R)
    rng = np.random.default_rng(seed)
    # Counts of each record in a resample, so that a resample is one matrix row.
    weights_SR = rng.multinomial(count, np.full(count, 1 / count), size=samples)
    means_S = weights_SR @ values_R / count
    tail = (1 - confidence) / 2
    low, high = np.quantile(means_S, [tail, 1 - tail])
    return Estimate(float(values_R.mean()), float(low), float(high), count)


def bootstrap_difference(
    after_R: Values, before_R: Values, *, samples: int, confidence: float, seed: int
) -> Estimate:
    """Mean change of the same records; pairing takes the spread between records out."""
    return bootstrap_mean(after_R - before_R, samples=samples, confidence=confidence, seed=seed)
