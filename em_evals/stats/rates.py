"""The difference of two rates over the same questions; one of the contrasts of stats/means.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from em_evals.stats import ties, weighted_mean
from em_evals.stats.proportions import Arm, Interval, cautious, effective, exact_p_higher, score_interval
from em_evals.stats.special import p_value, special

Clusters = Mapping[str, tuple[int, int]]
"""(events, draws) of each question."""


@dataclass(frozen=True)
class RateContrast:
    """Two rates over the same questions.

    **Difference.** d = Σ wᵢ (p̂₁ᵢ − p̂₀ᵢ) over the questions that both models answered, with Mantel and Haenszel's
    weights wᵢ ∝ n₀ᵢ n₁ᵢ / (n₀ᵢ + n₁ᵢ). With equal numbers of draws these are pooled rates; with unequal ones both
    models are compared at one mix of questions.

    **Interval and test against a margin.** Miettinen and Nurminen's score statistic (Statistics in Medicine 4, 1985)
    on effective draws. With no events in 800 draws the interval is still ±0.5 points, never ±0. The effective number
    of draws is p̂(1−p̂)/V, where V is the variance of the stratified rate; V sums p̃ᵢ(1−p̃ᵢ), where p̃ᵢ is the question's
    rate shrunk toward the pooled one by two draws, so that questions with few draws or no events do not get a variance
    near 0. By Jensen's inequality Σ wᵢ pᵢ(1−pᵢ) ≤ p̄(1−p̄): pooling alone would be valid but too wide wherever
    questions differ (a coherent share of 30% on one and 99% on another). Surveys found Wilson-type intervals on
    effective draws to be the best near 0 (Franco et al., J. Survey Statistics and Methodology 7, 2019).

    **Test against zero.** Exact: given each question's total of events, the candidate's share is hypergeometric if
    the model did not change, independently for each question (Fisher's test, stratified; Cox 1970). Its level holds at
    any rate and any number of draws; the score test's level does not hold for a handful of events.
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
        """Number of all draws of each model."""
        return sum(n for _, n in self.before.values()), sum(n for _, n in self.after.values())

    @property
    def shared(self) -> tuple[str, ...]:
        """The questions that both models answered: the others are in no number but `units`."""
        return self._common

    @property
    def baseline(self) -> float:
        """The baseline's rate at the common mix of questions, so that the levels differ by `estimate`."""
        return self._arms[0].rate

    @property
    def candidate(self) -> float:
        """The candidate's rate at the common mix of questions."""
        return self._arms[1].rate

    @property
    def effect_name(self) -> str:
        """Symbol of Cohen's h: 2 arcsin √p₁ − 2 arcsin √p₀."""
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
        """Return the p-value of the exact test (at 0) or of the score test, corrected for skewness (elsewhere)."""
        if not self._common:
            return math.nan
        return (
            exact_p_higher(self._tables)
            if bound == 0
            else p_value(special.ndtr(-cautious(bound, *self._arms)))
        )

    def p_below(self, bound: float) -> float:
        """Return the p-value of the exact test (at 0) or of the score test, corrected for skewness (elsewhere)."""
        if not self._common:
            return math.nan
        if bound == 0:
            return exact_p_higher([(k0, n0, k1, n1) for k1, n1, k0, n0 in self._tables])
        return p_value(special.ndtr(cautious(bound, *self._arms)))

    def interval(self, alpha: float) -> Interval:
        """Return the interval for new draws for these same questions."""
        if not self._common:
            return math.nan, math.nan
        return score_interval(*self._arms, alpha)

    def random_questions(self, alpha: float) -> Interval:
        """Return a weighted Student's t interval over questions, at least as wide as the fixed-question interval.

        The floor matters near 0: if no question has an event, the differences have no variance at all. Fewer equal
        differences than sign flips can reject with say nothing (see ties.py).
        """
        low, high = self.interval(alpha)
        questions = len(self._common)
        if questions < 2 or (self.alike and ties.p_value(questions) > alpha):
            return -1.0, 1.0
        reach = float(special.stdtrit(self.freedom, 1 - alpha)) * self.spread
        return max(-1.0, min(low, self.estimate - reach)), min(1.0, max(high, self.estimate + reach))

    @cached_property
    def by_question(self) -> dict[str, float]:
        """Candidate − baseline of each question that both models answered."""
        return {
            question: k1 / n1 - k0 / n0
            for question, (k1, n1, k0, n0) in zip(self._common, self._tables, strict=True)
        }

    @property
    def spread(self) -> float:
        """Standard error of the difference over questions: between questions and between draws, as they were seen."""
        return weighted_mean.error(self._differences, self._weights)

    @property
    def freedom(self) -> float:
        """Degrees of freedom of `spread`; questions - 1 with equal numbers of draws."""
        return weighted_mean.freedom(self._weights)

    @property
    def alike(self) -> bool:
        """Whether all questions have the same difference."""
        return ties.equal(self._differences)

    @property
    def variances(self) -> tuple[float, float]:
        """Variance of each model's rate over new draws for these questions: p (1 − p) / effective draws."""
        before, after = self._arms
        return before.rate * (1 - before.rate) / before.draws, after.rate * (1 - after.rate) / after.draws

    def worst(self, alpha: float, sign: int) -> tuple[str, float, Interval] | None:
        """Return the question that changed most for the worse, its difference, and its simultaneous interval.

        The interval is at alpha / number of questions (Bonferroni), so that it holds although the question was chosen.

        Args:
            alpha: one-sided level of all questions' intervals together.
            sign: 1 if higher is worse, -1 if lower is.
        """
        if not self._common:
            return None
        name = max(self.by_question, key=lambda question: sign * self.by_question[question])
        alone = RateContrast({name: self.before[name]}, {name: self.after[name]})
        return name, self.by_question[name], alone.interval(alpha / len(self._common))

    @cached_property
    def _tables(self) -> list[tuple[int, int, int, int]]:
        """(events, draws) of the candidate, then of the baseline, for each common question."""
        return [(*self.after[question], *self.before[question]) for question in self._common]

    @cached_property
    def _differences(self) -> NDArray[np.float64]:
        return np.fromiter(self.by_question.values(), dtype=float)

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
