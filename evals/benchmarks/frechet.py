"""Fréchet distance of two sets of features (FID, Heusel et al. 2017, arXiv 1706.08500).

Shapes: R pictures, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evals.statistics import Estimate, Values


def frechet_distance(a_RD: Values, b_RD: Values) -> float:
    """Distance of the normal distributions with the means and covariances of two sets."""
    mean_distance = ((a_RD.mean(0) - b_RD.mean(0)) ** 2).sum()
    covariances = [np.atleast_2d(np.cov(rows_RD, rowvar=False)) for rows_RD in (a_RD, b_RD)]
    # The trace of the root of a product is the sum of the roots of its eigenvalues, which are real
    # and not negative but for rounding.
    eigenvalues = np.linalg.eigvals(covariances[0] @ covariances[1])
    root = np.sqrt(eigenvalues.astype(np.complex128)).real.sum()
    return float(mean_distance + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * root)


@dataclass(frozen=True)
class FrechetFigure:
    """The distance as a figure.

    It has no interval: resamples repeat pictures, which makes covariances smaller and the distance
    larger than that of any sample of its size.
    """

    name: str
    group: str
    true_RD: Values
    drawn_RD: Values

    def estimate(self, *, samples: int, confidence: float, seed: int) -> Estimate:
        """Its value, which is also both ends of the interval."""
        value = frechet_distance(self.true_RD, self.drawn_RD)
        return Estimate(value, value, value, len(self.drawn_RD))
