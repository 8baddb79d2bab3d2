"""The standard error of a weighted mean over sampled clusters, and the degrees of freedom of its Student's t.

A cluster with much weight pulls the mean toward itself, so its residual is too small: residuals count as r / √(1 − w)
(HC2), and the degrees of freedom are those of Bell and McCaffrey (Survey Methodology 28, 2002) for clusters of one
variance. With equal weights both are the usual ones, and n − 1. With one of 11 clusters at half of the weight, the
usual t interval holds 81% at a nominal 95%.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def error(values: Floats, weights: Floats) -> float:
    """Return the standard error of Σ w v: √(Σ w² r² / (1 − w)), with residuals r.

    Args:
        values: [clusters], two or more.
        weights: [clusters], summing to 1, none of them 1.

    Example:
        >>> round(error(np.array([1.0, 2.0, 6.0]), np.full(3, 1 / 3)), 4)  # the standard deviation / √3
        1.5275
    """
    residuals = values - float(weights @ values)
    return math.sqrt(float((weights**2 / (1 - weights)) @ residuals**2))


def freedom(weights: Floats) -> float:
    """Return Bell and McCaffrey's degrees of freedom of `error`: 2 E(error²)² / Var(error²).

    Example:
        >>> round(freedom(np.full(8, 1 / 8)), 6), round(freedom(np.array([0.5, *[0.05] * 10])), 2)
        (7.0, 1.35)
    """
    # Residuals of values of variance 1 have the covariance C = I − 1 w' − w 1' + (w·w) 1 1'. With a = w² / (1 − w),
    # E = Σ a C_ii and Var = 2 Σ a_i a_j C_ij², summed without the matrix: logs can have thousands of questions.
    a, square = weights**2 / (1 - weights), float(weights @ weights)
    beside = square - 2 * weights  # C_ii − 1
    none, one, two = (float(a @ weights**power) for power in (0, 1, 2))
    everywhere = square**2 * none**2 + 2 * two * none - 4 * square * one * none + 2 * one**2
    return float(a @ (1 + beside)) ** 2 / (everywhere + float(a**2 @ (1 + 2 * beside)))
