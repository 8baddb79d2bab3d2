"""The difference of two models item by item: the single source of intervals and p-values for paired items.

Gate, retention, report and studies all use this module (`difference`, or `PairedContrast` to test against a margin),
so the same items give the same numbers everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from em_evals.stats import intervals, ties
from em_evals.stats.bootstrap import LEAST, StudentizedMean
from em_evals.stats.proportions import Interval, invert
from em_evals.stats.special import p_value, special

_SMALLEST = 1e-12


@dataclass(frozen=True)
class Difference:
    """A mean paired difference (after - before).

    Attributes:
        value: the mean; NaN without items.
        interval: its interval; NaN with fewer than two items.
        p: the two-sided p-value of no difference; NaN with fewer than two items.
        n: number of items with a value under both models.
    """

    value: float
    interval: Interval
    p: float
    n: int


def difference(
    before: Mapping[str, float],
    after: Mapping[str, float],
    confidence: float = intervals.CONFIDENCE,
    binary: bool | None = None,
) -> Difference:
    """Compare two models on the items that have a value under both.

    Args:
        before: each item's value under one model.
        after: each item's value under the other.
        confidence: level of the two-sided interval; raise it if several must hold together (Bonferroni).
        binary: whether values are right (1) or wrong (0); by default, if all of them are 0 or 1. Pass False for
            numbers that may happen to be all 0.

    Returns:
        The mean difference with its interval and two-sided p-value, as `PairedContrast` computes them.

    Example:
        >>> found = difference({"a": 1, "b": 1, "c": 0}, {"a": 0, "b": 1, "c": 0})
        >>> round(found.value, 3), found.p, found.n
        (-0.333, 1.0, 3)
    """
    found = PairedContrast(before, after, binary)
    # Both ends are bounds at one-sided alpha.
    interval = found.interval((1 - confidence) / 2)
    return Difference(found.estimate, interval, found.p_different, found.items)


def interval_of(differences: Sequence[float] | NDArray[np.float64]) -> Interval:
    """Return the 95% interval for the mean of paired differences of real-valued (not binary) items.

    Student's t, or the studentized bootstrap where the differences are skewed (see `skewed`).
    """
    values = np.asarray(differences, dtype=float)
    if skewed(values):
        return StudentizedMean.of(values).interval((1 - intervals.CONFIDENCE) / 2)
    return intervals.mean(values)


def skewed(values: NDArray[np.float64]) -> bool:
    """Return whether values are skewed beyond twice the standard error that skewness has for normal values, √(6/n).

    Harm in 5% of the items is such a case: at a nominal 2.5%, Student's t passes 6 to 9% of models that are worse by
    exactly the margin.
    """
    if len(values) < LEAST or (spread := float(values.std())) <= _SMALLEST:
        return False
    skewness = float((((values - values.mean()) / spread) ** 3).mean())
    return abs(skewness) > 2 * math.sqrt(6 / len(values))


@dataclass(frozen=True)
class PairedContrast:
    """One value per item under each model; items are paired.

    Binary values (right or wrong) get Tango's score test for the difference of paired proportions (Statistics in
    Medicine 17, 1998) and McNemar's exact test against zero, so that agreement on 20 items is not reported as certain
    equality. Other values get Student's t on the differences, or the studentized bootstrap where these are skewed.
    """

    before: Mapping[str, float]
    after: Mapping[str, float]
    binary: bool | None = None
    """Whether values are right or wrong; None: yes if all of them are 0 or 1."""

    @cached_property
    def _differences(self) -> NDArray[np.float64]:
        both = [self.after[item] - value for item, value in self.before.items() if item in self.after]
        return np.array([value for value in both if not math.isnan(value)], dtype=float)

    @cached_property
    def right_or_wrong(self) -> bool:
        """Whether values are 0 or 1."""
        if self.binary is not None:
            return self.binary
        return {*self.before.values(), *self.after.values()} <= {0.0, 1.0}

    @cached_property
    def _equal(self) -> bool:
        """Whether all differences are the same number."""
        return ties.equal(self._differences)

    @property
    def items(self) -> int:
        """Number of items with a value under both models."""
        return len(self._differences)

    @property
    def units(self) -> tuple[int, int]:
        """Number of items of each model."""
        return len(self.before), len(self.after)

    @property
    def baseline(self) -> float:
        """The baseline's mean."""
        return _mean(list(self.before.values()))

    @property
    def candidate(self) -> float:
        """The candidate's mean."""
        return _mean(list(self.after.values()))

    @property
    def estimate(self) -> float:
        """The mean of the differences."""
        return _mean(self._differences)

    @property
    def effect_name(self) -> str:
        """Symbol of Cohen's d for paired values: the mean difference in standard deviations of the differences."""
        return "d_z"

    @property
    def effect(self) -> float:
        """Cohen's d_z; 0 if no item differs."""
        spread = float(self._differences.std(ddof=1)) if len(self._differences) > 1 else math.nan
        if spread == 0 or self._equal:
            return 0.0 if self.estimate == 0 else math.copysign(math.inf, self.estimate)
        return self.estimate / spread

    def p_above(self, bound: float) -> float:
        """Return the p-value of McNemar's exact test, Tango's score test, Student's t or the bootstrap (see above)."""
        return self._p(bound, 1)

    def p_below(self, bound: float) -> float:
        """Return the p-value of McNemar's exact test, Tango's score test, Student's t or the bootstrap (see above)."""
        return self._p(bound, -1)

    @property
    def p_different(self) -> float:
        """Two-sided p-value of no difference: twice the smaller one-sided one."""
        smaller = min(self.p_above(0), self.p_below(0))
        return smaller if math.isnan(smaller) else min(1.0, 2 * smaller)

    def interval(self, alpha: float) -> Interval:
        """Return the interval over items; each end is a bound at one-sided `alpha`."""
        if self.right_or_wrong and self.items > 1:
            return invert(self._tango, float(special.ndtri(1 - alpha)), -1, 1)
        if (resampled := self._resampled) is not None:
            return resampled.interval(alpha)
        return intervals.mean(self._differences, 1 - 2 * alpha)

    def random_questions(self, alpha: float) -> Interval:
        """Return the same interval: it already covers other items of this kind."""
        return self.interval(alpha)

    @cached_property
    def _resampled(self) -> StudentizedMean | None:
        """The bootstrap of skewed differences; None where Student's t holds."""
        return StudentizedMean.of(self._differences) if skewed(self._differences) else None

    @property
    def _standard_error(self) -> float:
        return float(self._differences.std(ddof=1)) / math.sqrt(len(self._differences))

    def _p(self, bound: float, side: int) -> float:
        count = self.items
        if count < 2:
            return math.nan
        if self.right_or_wrong:
            if bound == 0:
                won, lost = (
                    int((self._differences * side > 0).sum()),
                    int((self._differences * side < 0).sum()),
                )
                return float(special.bdtrc(won - 1, won + lost, 0.5)) if won + lost else 1.0
            return p_value(special.ndtr(-side * self._tango(bound)))
        if (resampled := self._resampled) is not None:
            return resampled.p_above(bound) if side > 0 else resampled.p_below(bound)
        gap = side * (self.estimate - bound)
        if self._equal:
            return ties.p_value(count) if gap > 0 else 1.0
        return p_value(special.stdtr(count - 1, -gap / self._standard_error))

    def _tango(self, bound: float) -> float:
        """Return Tango's score: (difference − bound) over its standard error under the bound."""
        count = len(self._differences)
        gained, lost = int((self._differences > 0).sum()), int((self._differences < 0).sum())
        # Under the bound, the maximum-likelihood probability of a lost item is the larger root of a·x² + b·x + c = 0.
        a, c = 2 * count, -lost * bound * (1 - bound)
        b = -gained - lost + (2 * count - gained + lost) * bound
        only_lost = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = count * (2 * only_lost + bound * (1 - bound))
        gap = gained - lost - count * bound
        return (
            gap / math.sqrt(variance)
            if variance > _SMALLEST
            else math.copysign(math.inf, gap)
            if gap
            else 0.0
        )


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    kept = [float(value) for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan
