"""Means of values that are all equal. They have no spread to measure chance by, and their number still limits it.

Two pairs that both differ by 0.1 do not show a difference of 0.1 for certain: with a standard error of 0, Student's t
would say p = 0. What is left is the number of values:

- Against a bound that all n values lie on one side of, sign flips have the p-value 1/2^n (the sign test).
- On a scale with ends, a share of at most q = 1 - alpha^(1/n) of other values could differ, up to the scale's end. For
  n equal values at an end that is Clopper and Pearson's limit.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from em_evals.stats import special

Interval = tuple[float, float]

_ROUNDING = 1e-12
"""Spread beside the largest value that is rounding of differences such as 0.3 - 0.2 and 0.2 - 0.1."""


def equal(values: NDArray[np.float64]) -> bool:
    """Return whether all values are the same number, up to rounding; True without values."""
    return not len(values) or float(np.ptp(values)) <= _ROUNDING * float(np.abs(values).max())


def p_value(count: int) -> float:
    """Return the one-sided p-value of a bound that all of `count` equal values lie beyond.

    Example:
        >>> p_value(2), p_value(6) < 0.025
        (0.25, True)
    """
    return special.p_value(0.5**count)


def interval(value: float, count: int, alpha: float, bounds: Interval = (-math.inf, math.inf)) -> Interval:
    """Return the interval for the mean of `count` equal values; each end is a bound at one-sided `alpha`.

    Toward an end of the scale it reaches as far as the values that can be missing. Without an end it is the value
    itself where sign flips reject every other mean, and NaN with fewer values than that.

    Example:
        >>> [round(end, 1) for end in interval(100, 10, 0.025, (0, 100))]
        [69.2, 100.0]
    """
    missing = 1 - alpha ** (1 / count) if count else 1.0
    known = value if p_value(count) <= alpha else math.nan
    low, high = (value + missing * (end - value) if math.isfinite(end) else known for end in bounds)
    return low, high
