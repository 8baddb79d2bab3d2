"""Simultaneous bands for the mean of curves: 95% of bands hold the whole true curve, not each point of it.

mean(s) ± c · error(s), where c is the 95% quantile of max over s of |t(s)|, with t multivariate Student of the curves'
own correlation between points (sup-t; Montiel Olea and Plagborg-Møller 2019, J. Applied Econometrics 34). Neighboring
points of a training are nearly one number, so c stays close to Student's own quantile, far below Bonferroni's.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_DRAWS = 4000
_CONFIDENCE = 0.95


def simultaneous(curves: NDArray[np.floating], seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Return (mean, low, high) of a band of 95%, each [points].

    Args:
        curves: [units, points], independent units (prompts, training seeds), each with its whole curve.
        seed: of the draws that find its width.

    Returns:
        NaN ends with fewer than two units; a point without spread has its mean as both ends.

    Example:
        >>> mean, low, high = simultaneous(np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]))
        >>> float(mean[1]), float(low[0])
        (2.0, 0.0)
    """
    found = np.asarray(curves, dtype=float)
    mean = found.mean(0)
    if len(found) < 2:
        missing = np.full(mean.shape, math.nan)
        return mean, missing, missing
    centered = found - mean
    spread = np.sqrt((centered**2).sum(0) / (len(found) - 1))
    varies = spread > 1e-12 * np.maximum(np.abs(found).max(0), 1e-30)
    if not varies.any():
        return mean, mean.copy(), mean.copy()
    # Rows of unit-variance residuals span the correlation of the points: normal weights over units draw from it.
    scaled = centered[:, varies] / spread[varies] / math.sqrt(len(found) - 1)
    chance = np.random.default_rng(seed)
    drawn = np.abs(chance.normal(size=(_DRAWS, len(found))) @ scaled).max(1)
    freedom = len(found) - 1
    quantile = float(np.quantile(drawn / np.sqrt(chance.chisquare(freedom, _DRAWS) / freedom), _CONFIDENCE))
    reach = np.where(varies, quantile * spread / math.sqrt(len(found)), 0.0)
    return mean, mean - reach, mean + reach
