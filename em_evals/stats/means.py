"""The difference between a candidate and its baseline, with its uncertainty. Verdicts are left to gate/compare.py.

Three kinds of data, one interface (`Contrast`):

- `RateContrast` (rates.py): events and draws of each question (EM rates, coherent share). Questions are strata: both
  models answered the same ones, so question effects cancel. Draws are random, questions are fixed.
- `PairedContrast` (paired.py): one number per item under each model (forced-choice margins, lm-eval's items). Nothing
  is sampled from the model; the items are the random sample, so the interval is over items.
- `MeanContrast` (here): two means with standard errors, for files that hold nothing more.

All bounds and p-values are one-sided. `p_above(b)` tests "the difference is at most b" and is small if the data show
a difference above b; `p_below(b)` is the reverse. Differences are candidate − baseline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from em_evals.stats.proportions import Interval
from em_evals.stats.special import p_value, special


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
        """Number of draws (or items) of baseline and candidate."""

    @property
    def effect(self) -> float:
        """The difference as a unitless effect size; see `effect_name`."""

    @property
    def effect_name(self) -> str:
        """Symbol of the effect size."""

    def p_above(self, bound: float) -> float:
        """Return the one-sided p-value of the hypothesis that the difference is at most `bound`."""

    def p_below(self, bound: float) -> float:
        """Return the one-sided p-value of the hypothesis that the difference is at least `bound`."""

    def interval(self, alpha: float) -> Interval:
        """Return the verdict's interval: each end is a bound at one-sided `alpha`."""

    def random_questions(self, alpha: float) -> Interval:
        """Return the interval for other questions of this kind."""


@dataclass(frozen=True)
class MeanContrast:
    """Two means with standard errors, as in lm-eval results without logged samples.

    The contrast is unpaired although the items are the same: the errors add as if independent, which makes the interval
    too wide, not too narrow, for models that find the same items hard.
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
        """Return the p-value from the normal distribution."""
        return p_value(special.ndtr(-self._z(bound)))

    def p_below(self, bound: float) -> float:
        """Return the p-value from the normal distribution."""
        return p_value(special.ndtr(self._z(bound)))

    def interval(self, alpha: float) -> Interval:
        """Return the normal interval; lm-eval's standard errors are over items."""
        reach = float(special.ndtri(1 - alpha)) * self._error
        return self.estimate - reach, self.estimate + reach

    def random_questions(self, alpha: float) -> Interval:
        """Return the same interval: it already covers other items of this kind."""
        return self.interval(alpha)

    @property
    def _error(self) -> float:
        return math.hypot(*self.errors)

    def _z(self, bound: float) -> float:
        # A missing standard error means no evidence, not certainty.
        return (self.estimate - bound) / self._error if self._error > 0 else math.nan


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's adjusted p-values (Scandinavian J. Statistics 6, 1979); NaN stays NaN and is not counted."""
    known = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    adjusted, largest = dict.fromkeys(p_values, math.nan), 0.0
    for rank, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[name] = largest
    return adjusted


def benjamini_hochberg(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return adjusted p-values that control the false discovery rate (J. Royal Statistical Society B 57, 1995).

    It holds for independent or positively dependent tests; NaN stays NaN and is not counted.
    """
    known = sorted(((p, name) for name, p in p_values.items() if not math.isnan(p)), reverse=True)
    adjusted, smallest = dict.fromkeys(p_values, math.nan), 1.0
    for rank, (p, name) in enumerate(known):
        smallest = min(smallest, p * len(known) / (len(known) - rank))
        adjusted[name] = smallest
    return adjusted


ADJUSTMENTS = {"holm": holm, "bh": benjamini_hochberg}
"""Corrections for several tests, by their names: family-wise error, and false discovery rate."""
