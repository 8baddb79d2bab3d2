"""The studentized bootstrap (bootstrap-t) for the mean of skewed values: few large harms, shares, bounded scales.

Student's t assumes that a mean and its standard error are independent. For skewed values they are not: a sample that
misses the rare large values has a low mean and a small error, so that the interval ends below the truth. Bootstrap-t
(Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 12.5) takes the distribution of
t = (mean - truth) / error from resamples in place of Student's table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from em_evals.stats import ties
from em_evals.stats.special import p_value, special

Interval = tuple[float, float]

LEAST = 8
"""With fewer values, resamples repeat too few different ones; Student's t is used instead."""

_RESAMPLES = 4999
_CELLS = 2_000_000
"""Values drawn at once: a bound on memory."""
_SEED = 20250214


@dataclass(frozen=True)
class StudentizedMean:
    """A mean with the bootstrap distribution of its t statistic; the same values always give the same numbers.

    Attributes:
        mean: of the values.
        error: its standard error; 0 where all values are equal (see ties.py).
        units: number of values.
        pivots: sorted t of each resample; empty with fewer than `LEAST` values or without any spread.
        bounds: what the mean cannot leave, such as (0, 100).
    """

    mean: float
    error: float
    units: int
    pivots: NDArray[np.float64]
    bounds: Interval = (-math.inf, math.inf)

    @classmethod
    def of(
        cls, values: Sequence[float] | NDArray[np.float64], bounds: Interval = (-math.inf, math.inf)
    ) -> StudentizedMean:
        """Resample values of independent units (questions' means, paired differences).

        Args:
            values: [units].
            bounds: the scale's ends, or infinite.
        """
        array = np.asarray(values, dtype=float)
        units = len(array)
        if not units:
            return cls(math.nan, math.nan, 0, np.empty(0), bounds)
        error = math.nan
        if units > 1:
            error = 0.0 if ties.equal(array) else float(array.std(ddof=1)) / math.sqrt(units)
        mean = float(array.mean())
        pivots = _pivots(array) if units >= LEAST and error > 0 else np.empty(0)
        return cls(mean, error, units, pivots, bounds)

    def interval(self, alpha: float) -> Interval:
        """Return the interval whose ends are each a bound at one-sided `alpha`, within `bounds`.

        (nan, nan) with fewer than two values.
        """
        if self.units < 2:
            return math.nan, math.nan
        if not self.error > 0:
            return ties.interval(self.mean, self.units, alpha, self.bounds)
        # The upper quantile of t gives the lower end: t is large where a sample's mean is too high.
        low = self.mean - self._quantile(1 - alpha) * self.error
        high = self.mean - self._quantile(alpha) * self.error
        return max(low, self.bounds[0]), min(high, self.bounds[1])

    def p_above(self, bound: float) -> float:
        """Return the one-sided p-value of the hypothesis that the mean is at most `bound`."""
        return self._tail(bound, upper=True)

    def p_below(self, bound: float) -> float:
        """Return the one-sided p-value of the hypothesis that the mean is at least `bound`."""
        return self._tail(bound, upper=False)

    def _quantile(self, level: float) -> float:
        if not len(self.pivots):
            return float(special.stdtrit(self.units - 1, level))
        # The k-th of B sorted values is the level k / (B + 1); Davison and Hinkley 1997, section 2.3.
        rank = level * (len(self.pivots) + 1)
        place = math.floor(rank) if level <= 0.5 else math.ceil(rank)
        return float(self.pivots[min(max(place, 1), len(self.pivots)) - 1])

    def _tail(self, bound: float, upper: bool) -> float:
        if self.units < 2:
            return math.nan
        if not self.error > 0:
            return ties.p_value(self.units) if (self.mean > bound) == upper and self.mean != bound else 1.0
        t = (self.mean - bound) / self.error
        if not len(self.pivots):
            return p_value(special.stdtr(self.units - 1, -t if upper else t))
        beyond = int((self.pivots >= t).sum() if upper else (self.pivots <= t).sum())
        return (1 + beyond) / (1 + len(self.pivots))


def _pivots(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sorted t statistics of resamples, each around the sample's own mean.

    A resample of equal values has no error; its t is infinite unless its mean is the sample's.
    """
    random = np.random.default_rng(_SEED)
    units, mean = len(values), values.mean()
    found: list[NDArray[np.float64]] = []
    step = max(1, _CELLS // units)
    for start in range(0, _RESAMPLES, step):
        rows = min(step, _RESAMPLES - start)
        drawn = values[random.integers(0, units, size=(rows, units))]
        shift = drawn.mean(axis=1) - mean
        error = drawn.std(axis=1, ddof=1) / math.sqrt(units)
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append(np.where(shift == 0, 0.0, shift / error))
    return np.sort(np.concatenate(found))
