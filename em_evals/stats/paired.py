"""The difference of two models item by item; one of the contrasts of statistics.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from em_evals.stats.proportions import Interval, invert

_SMALLEST = 1e-12


@dataclass(frozen=True)
class PairedContrast:
    """One value for each item under each model; items are paired.

    Values of 0 and 1 (right or wrong) get Tango's score test for the difference of paired proportions (Statistics in
    Medicine 17, 1998) and McNemar's exact test against zero, so that two models which agree on 20 items are not
    called equal beyond doubt. Other values get Student's t on the differences.
    """

    before: Mapping[str, float]
    after: Mapping[str, float]

    @cached_property
    def _differences(self) -> NDArray[np.float64]:
        both = [self.after[item] - value for item, value in self.before.items() if item in self.after]
        return np.array([value for value in both if not math.isnan(value)], dtype=float)

    @cached_property
    def _binary(self) -> bool:
        return {*self.before.values(), *self.after.values()} <= {0.0, 1.0}

    @property
    def units(self) -> tuple[int, int]:
        """Items of each model."""
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
        """Cohen's d of paired values: the mean difference in standard deviations of the differences."""
        return "d_z"

    @property
    def effect(self) -> float:
        """Cohen's d_z; 0 where nothing differs."""
        spread = float(self._differences.std(ddof=1)) if len(self._differences) > 1 else math.nan
        if spread == 0:
            return 0.0 if self.estimate == 0 else math.copysign(math.inf, self.estimate)
        return self.estimate / spread

    def p_above(self, bound: float) -> float:
        """McNemar's exact test at 0 and Tango's score elsewhere, or Student's t."""
        return self._p(bound, 1)

    def p_below(self, bound: float) -> float:
        """McNemar's exact test at 0 and Tango's score elsewhere, or Student's t."""
        return self._p(bound, -1)

    def interval(self, alpha: float) -> Interval:
        """Over items."""
        count = len(self._differences)
        if count < 2:
            return math.nan, math.nan
        if self._binary:
            return invert(self._tango, float(stats.norm.ppf(1 - alpha)), -1, 1)
        reach = float(stats.t.ppf(1 - alpha, count - 1)) * self._standard_error
        return self.estimate - reach, self.estimate + reach

    def random_questions(self, alpha: float) -> Interval:
        """The same interval: it is already about other items of this kind."""
        return self.interval(alpha)

    @property
    def _standard_error(self) -> float:
        return float(self._differences.std(ddof=1)) / math.sqrt(len(self._differences))

    def _p(self, bound: float, side: int) -> float:
        count = len(self._differences)
        if count < 2:
            return math.nan
        if self._binary:
            if bound == 0:
                won, lost = (
                    int((self._differences * side > 0).sum()),
                    int((self._differences * side < 0).sum()),
                )
                return float(stats.binom.sf(won - 1, won + lost, 0.5)) if won + lost else 1.0
            return float(stats.norm.sf(side * self._tango(bound)))
        gap = side * (self.estimate - bound)
        if self._standard_error == 0:
            return 0.0 if gap > 0 else 1.0
        return float(stats.t.sf(gap / self._standard_error, count - 1))

    def _tango(self, bound: float) -> float:
        """Tango's score: the difference minus the bound, over its standard error if the bound were true."""
        count = len(self._differences)
        gained, lost = int((self._differences > 0).sum()), int((self._differences < 0).sum())
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
