"""Differences over all questions of a kind, of which those that were asked are a sample (`scope: population`).

Each question's difference D_i = p̂₁ᵢ − p̂₀ᵢ lies in [−1, 1], and its expectation over questions and draws is the
population's difference. Two statements are tested, in two ways, because they err in two ways:

- **Harm is shown** (a regression): a random-slope model, D_i = d + slope_i + noise, is Student's t over questions; see
  `RateContrast.random_questions`.
- **Harm is ruled out** (a pass): t is not enough. Harm of 40 points in 5% of the kinds of questions is 2 points on
  average, and 24 questions contain none of these kinds 29% of the time; then all differences are about 0 and t passes.
  A pass also needs the Kaplan-Markov test, which assumes nothing but the bounds: if d ≥ m, then
  E = Π (1 − D_i) / (1 − m) has an expectation of at most 1, so that 1/E is a p-value by Markov's inequality (Stark,
  IEEE Trans. Information Forensics and Security 4, 2009, for election audits). Smaller bets 1 + c (m − D_i) / (1 − m)
  are mixed in for noisy questions (Waudby-Smith and Ramdas, JRSS B 86, 2024, arXiv 2010.09686).

If no question differs, E = (1 − m)^−Q: to rule out 2 points at one-sided 2.5% takes 194 questions, however many draws
each has. `missed` says what fewer can miss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from em_evals.stats import ties
from em_evals.stats.proportions import Interval, crossing
from em_evals.stats.rates import RateContrast
from em_evals.stats.special import p_value, special

RARE = 0.05
"""Share of items in which harm must not be missed; see `Unseen`."""
_BETS = {1.0: 0.8, 0.5: 0.1, 0.2: 0.05, 0.05: 0.05}
"""Size of a bet (1 is the largest that cannot go below zero) -> its share of the stake."""
_SIZES, _STAKES = np.array([*_BETS])[:, None], np.log([*_BETS.values()])


@dataclass(frozen=True)
class RandomSlopes:
    """The random-slope part of a contrast of rates: Student's t over the questions' differences."""

    rates: RateContrast

    def p_above(self, bound: float) -> float:
        """Return the p-value of "the difference is at most `bound`"."""
        return self._p(1, bound)

    def p_below(self, bound: float) -> float:
        """Return the p-value of "the difference is at least `bound`"."""
        return self._p(-1, bound)

    def interval(self, alpha: float) -> Interval:
        """Return the interval for other questions."""
        return self.rates.random_questions(alpha)

    def _p(self, side: int, bound: float) -> float:
        questions = len(self.rates.by_question)
        if questions < 2:
            return 1.0
        gap = side * (self.rates.estimate - bound)
        if self.rates.alike:
            return ties.p_value(questions) if gap > 0 else 1.0
        return p_value(special.stdtr(self.rates.freedom, -gap / self.rates.spread))


@dataclass(frozen=True)
class Unseen:
    """The part of a contrast of unbounded items that asks whether they are enough to contain rare harm at all.

    Harm in 5% of all items is in none of these with chance 0.95^items, and then nothing in their numbers shows it.

    Attributes:
        items: number of items.
        worse: which direction is harm.
    """

    items: int
    worse: Literal["higher", "lower"]

    def p_above(self, bound: float) -> float:
        """Return the chance to miss the harm if lower is worse; else 0."""
        return (1 - RARE) ** self.items if self.worse == "lower" else 0.0

    def p_below(self, bound: float) -> float:
        """Return the chance to miss the harm if higher is worse; else 0."""
        return (1 - RARE) ** self.items if self.worse == "higher" else 0.0

    def interval(self, alpha: float) -> Interval:
        """Return no bounds: rare harm of unknown size has none."""
        return math.inf, -math.inf


@dataclass(frozen=True)
class RareHarm:
    """The part of a contrast that rules out harm in few kinds of questions; it never shows harm.

    Attributes:
        differences: candidate − baseline of each question, in [−1, 1].
        worse: which direction is harm.
    """

    differences: Sequence[float]
    worse: Literal["higher", "lower"]

    def p_above(self, bound: float) -> float:
        """Return the p-value of "the difference is at most `bound`" if lower is worse; else 0."""
        return self._p(-bound) if self.worse == "lower" else 0.0

    def p_below(self, bound: float) -> float:
        """Return the p-value of "the difference is at least `bound`" if higher is worse; else 0."""
        return self._p(bound) if self.worse == "higher" else 0.0

    def interval(self, alpha: float) -> Interval:
        """Return the interval from the largest harm that is not ruled out to no bound on the other side."""
        bound = self._most(alpha)
        return (-bound, -math.inf) if self.worse == "lower" else (math.inf, bound)

    @cached_property
    def _harm(self) -> NDArray[np.float64]:
        values = np.asarray(self.differences, dtype=float)
        return values if self.worse == "higher" else -values

    def _p(self, margin: float) -> float:
        """Return the p-value of "harm is at least `margin`"."""
        if not len(self._harm) or margin <= -1:
            return 1.0
        if margin >= 1:
            return 0.0
        with np.errstate(divide="ignore"):
            gains = np.log1p(_SIZES * ((margin - self._harm) / (1 - margin))).sum(axis=1)
        wealth = _STAKES + gains
        return math.exp(min(0.0, -float(np.logaddexp.reduce(wealth))))

    def _most(self, alpha: float) -> float:
        """Return the largest harm that is not ruled out at `alpha`."""
        edges = float(self._harm.mean()) if len(self._harm) else 0.0, 1 - 1e-9
        if not len(self._harm) or self._p(edges[1]) > alpha or self._p(edges[0]) <= alpha:
            return 1.0 if not len(self._harm) or self._p(edges[1]) > alpha else edges[0]
        return crossing(lambda margin: self._p(margin) - alpha, *edges, precision=1e-6)


def missed(questions: int, alpha: float) -> float:
    """Return the largest share of kinds of questions that can be absent from so many with chance `alpha`.

    With no such kind among them, harm that is confined to these kinds cannot be seen: 1 − alpha^(1 / questions).

    Example:
        >>> round(missed(24, 0.025), 3), round(missed(194, 0.02), 3)
        (0.142, 0.02)
    """
    return 1 - alpha ** (1 / questions) if questions else 1.0


def questions_needed(margin: float, alpha: float) -> int:
    """Return how many questions can rule out harm of `margin` at `alpha` if no question differs at all.

    Example:
        >>> questions_needed(0.02, 0.025), questions_needed(0.05, 0.025)
        (194, 77)
    """
    return math.ceil((math.log(1 / alpha) - math.log(_BETS[1.0])) / -math.log1p(-margin))
