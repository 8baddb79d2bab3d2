"""How far a candidate lies from its baseline, and how sure that is. Data in, data out; verdicts are compare.py's.

Three kinds of data, one interface (`Contrast`):

- `RateContrast` (rate_contrast.py): events and draws of each question (EM rates, coherent share). Questions are strata:
  both models were asked the same ones, so what a question does to a rate cancels. Draws are random, questions fixed.
- `PairedContrast` (paired_contrast.py): one number for each item under each model (forced-choice margins, lm-eval's
  items). Nothing was drawn; what is random is which items were written, so items are what the interval is over.
- `MeanContrast` (here): two means with standard errors, where a file holds no more than that.

All bounds and p-values are one-sided. `p_above(b)` tests "the difference is at most b" and is small when the data
say that it lies above b; `p_below(b)` the reverse. Differences are candidate − baseline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from scipy import stats

from em_evals.stats.proportions import Interval


class Contrast(Protocol):
    """A difference between two models, with its tests."""

    @property
    def baseline(self) -> float:
        """The baseline's value."""

    @property
    def candidate(self) -> float:
        """The candidate's value."""

    @property
    def estimate(self) -> float:
        """Candidate − baseline."""

    @property
    def units(self) -> tuple[int, int]:
        """Draws (or items) of baseline and candidate."""

    @property
    def effect(self) -> float:
        """The difference on a scale without units; see `effect_name`."""

    @property
    def effect_name(self) -> str:
        """Which effect size it is."""

    def p_above(self, bound: float) -> float:
        """One-sided p-value of the hypothesis that the difference is at most `bound`."""

    def p_below(self, bound: float) -> float:
        """One-sided p-value of the hypothesis that the difference is at least `bound`."""

    def interval(self, alpha: float) -> Interval:
        """The interval of the verdict: each end is a bound at one-sided `alpha`."""

    def random_questions(self, alpha: float) -> Interval:
        """The interval for other questions of this kind."""


@dataclass(frozen=True)
class MeanContrast:
    """Two means with standard errors, as lm-eval's results give them without their samples.

    Not paired, although the items were the same: the errors add up as if independent, which is too wide, not too
    narrow, for models that find the same items hard.
    """

    baseline: float
    candidate: float
    errors: tuple[float, float]
    units: tuple[int, int]

    @property
    def estimate(self) -> float:
        """The difference of the means."""
        return self.candidate - self.baseline

    @property
    def effect_name(self) -> str:
        """Cohen's d, from standard errors and numbers of items."""
        return "d"

    @property
    def effect(self) -> float:
        """Cohen's d."""
        spread = math.sqrt(sum(e * e * n for e, n in zip(self.errors, self.units, strict=True)) / 2)
        return self.estimate / spread if spread > 0 else math.nan

    def p_above(self, bound: float) -> float:
        """By the normal distribution."""
        return float(stats.norm.sf(self._z(bound)))

    def p_below(self, bound: float) -> float:
        """By the normal distribution."""
        return float(stats.norm.cdf(self._z(bound)))

    def interval(self, alpha: float) -> Interval:
        """By the normal distribution; lm-eval's standard errors are over items."""
        reach = float(stats.norm.ppf(1 - alpha)) * self._error
        return self.estimate - reach, self.estimate + reach

    def random_questions(self, alpha: float) -> Interval:
        """The same interval: it is already about other items of this kind."""
        return self.interval(alpha)

    @property
    def _error(self) -> float:
        return math.hypot(*self.errors)

    def _z(self, bound: float) -> float:
        # Without a standard error nothing is known, not everything.
        return (self.estimate - bound) / self._error if self._error > 0 else math.nan


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values (Scandinavian J. Statistics 6, 1979); NaN stays NaN and counts for nothing."""
    known = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    adjusted, largest = dict.fromkeys(p_values, math.nan), 0.0
    for rank, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[name] = largest
    return adjusted
