"""How far a candidate lies from its baseline, and how sure that is. Data in, data out; verdicts are compare.py's.

Three kinds of data, one interface (`Contrast`):

- `RateContrast`: events and draws of each question (EM rates, coherent share). Questions are strata: both models were
  asked the same ones, so what a question does to a rate cancels. Draws are random, questions are fixed.
- `PairedContrast`: one number for each item under each model (forced-choice margins, lm-eval's items). Nothing was
  drawn; what is random is which items were written, so items are what the interval is over.
- `MeanContrast`: two means with standard errors, where a file holds no more than that.

All bounds and p-values are one-sided. `p_above(b)` tests "the difference is at most b" and is small when the data
say that it lies above b; `p_below(b)` the reverse. Differences are candidate − baseline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from em_evals.gate.proportions import Arm, effective, exact_p_higher, invert, score

Interval = tuple[float, float]
Clusters = Mapping[str, tuple[int, int]]
"""(events, draws) of each question."""

_SMALLEST = 1e-12


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
class RateContrast:
    """Two rates over the same questions.

    **Difference.** d = Σ wᵢ (p̂₁ᵢ − p̂₀ᵢ) over the questions that both were asked, with Mantel and Haenszel's weights
    wᵢ ∝ n₀ᵢ n₁ᵢ / (n₀ᵢ + n₁ᵢ): with equal numbers of draws these are plain pooled rates, with unequal ones both models
    are compared at one mix of questions.

    **Interval and test against a margin.** Miettinen and Nurminen's score statistic (Statistics in Medicine 4, 1985)
    on effective draws. With nothing observed in 800 draws it still says ±0.5 points, never ±0. The effective number
    of draws is p̂(1−p̂)/V, V being the variance of the stratified rate; V adds up p̃ᵢ(1−p̃ᵢ), where p̃ᵢ is the question's
    rate drawn toward the pooled one by two draws, so that questions with few draws or no events do not claim to know
    their rate. By Jensen's inequality Σ wᵢ pᵢ(1−pᵢ) ≤ p̄(1−p̄): pooling alone would be valid but too wide wherever
    questions differ (a coherent share of 30% on one and 99% on another). Wilson-type intervals on effective draws
    are what surveys found best near 0 (Franco et al., J. Survey Statistics and Methodology 7, 2019).

    **Test against zero.** Exact: given each question's total of events, the candidate's share of them is
    hypergeometric if the model did not change, independently for each question (Fisher's test, stratified; Cox 1970).
    Its level holds at any rate and any number of draws; the score test's does not when a handful of events is all.
    """

    before: Clusters
    after: Clusters
    _common: tuple[str, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        common = [
            q for q, (_, n) in self.before.items() if n > 0 and q in self.after and self.after[q][1] > 0
        ]
        object.__setattr__(self, "_common", tuple(common))

    @property
    def units(self) -> tuple[int, int]:
        """All draws of each model."""
        return sum(n for _, n in self.before.values()), sum(n for _, n in self.after.values())

    @property
    def baseline(self) -> float:
        """The baseline's rate over all its draws."""
        return _rate(self.before)

    @property
    def candidate(self) -> float:
        """The candidate's rate over all its draws."""
        return _rate(self.after)

    @property
    def effect_name(self) -> str:
        """Cohen's h: 2 arcsin √p₁ − 2 arcsin √p₀."""
        return "h"

    @property
    def effect(self) -> float:
        """Cohen's h at the common mix of questions."""
        one, two = self._arms
        return 2 * math.asin(math.sqrt(two.rate)) - 2 * math.asin(math.sqrt(one.rate))

    @property
    def estimate(self) -> float:
        """The difference at the common mix of questions."""
        one, two = self._arms
        return two.rate - one.rate

    def p_above(self, bound: float) -> float:
        """Exact at 0, by score elsewhere."""
        if not self._common:
            return math.nan
        return exact_p_higher(self._tables) if bound == 0 else float(stats.norm.sf(score(bound, *self._arms)))

    def p_below(self, bound: float) -> float:
        """Exact at 0, by score elsewhere."""
        if not self._common:
            return math.nan
        if bound == 0:
            return exact_p_higher([(k0, n0, k1, n1) for k1, n1, k0, n0 in self._tables])
        return float(stats.norm.cdf(score(bound, *self._arms)))

    def interval(self, alpha: float) -> Interval:
        """For new draws to these very questions."""
        if not self._common:
            return math.nan, math.nan
        return invert(lambda bound: score(bound, *self._arms), float(stats.norm.ppf(1 - alpha)), -1, 1)

    def random_questions(self, alpha: float) -> Interval:
        """Student's t on the questions' differences, weighted; never narrower than the fixed-question interval.

        The floor matters near 0: where no question saw an event, their differences do not vary at all.
        """
        low, high = self.interval(alpha)
        if len(self._common) < 2:
            return -1.0, 1.0
        differences = np.array([k1 / n1 - k0 / n0 for k1, n1, k0, n0 in self._tables])
        questions = len(differences)
        residuals = self._weights * (differences - self.estimate)
        spread = math.sqrt(questions / (questions - 1) * float(residuals @ residuals))
        reach = float(stats.t.ppf(1 - alpha, questions - 1)) * spread
        return max(-1.0, min(low, self.estimate - reach)), min(1.0, max(high, self.estimate + reach))

    @cached_property
    def _tables(self) -> list[tuple[int, int, int, int]]:
        """(events, draws) of the candidate, then of the baseline, for each common question."""
        return [(*self.after[question], *self.before[question]) for question in self._common]

    @cached_property
    def _weights(self) -> NDArray[np.float64]:
        raw = np.array([n1 * n0 / (n1 + n0) for _, n1, _, n0 in self._tables], dtype=float)
        weights: NDArray[np.float64] = raw / raw.sum()
        return weights

    @cached_property
    def _arms(self) -> tuple[Arm, Arm]:
        if not self._common:
            return Arm(math.nan, 0), Arm(math.nan, 0)
        return (
            effective([(k0, n0) for _, _, k0, n0 in self._tables], self._weights),
            effective([(k1, n1) for k1, n1, _, _ in self._tables], self._weights),
        )


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


def _rate(clusters: Clusters) -> float:
    draws = sum(n for _, n in clusters.values())
    return sum(k for k, _ in clusters.values()) / draws if draws else math.nan


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    kept = [float(value) for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan
