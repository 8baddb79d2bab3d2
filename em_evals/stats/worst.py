"""The worst of several contrasts (one for each cue), and a difference of differences of rates.

The worst of K differences is tested without a choice after the fact: it is below a bound where each of them is (an
intersection-union test, no correction), and above it where one of them is (Bonferroni over K).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from em_evals.stats.means import Contrast
from em_evals.stats.proportions import Interval, crossing
from em_evals.stats.rates import RateContrast
from em_evals.stats.strictest import Several

_LARGEST, _MOST_DECADES = 0.4, 12.0


@dataclass(frozen=True)
class Worst(Several):
    """The contrast whose difference is the largest change for the worse.

    Attributes:
        contrasts: by name, at least one.
        worse: which direction is harm.
    """

    contrasts: Mapping[str, Contrast]
    worse: Literal["higher", "lower"] = "higher"

    @cached_property
    def name(self) -> str:
        """Name of the worst contrast."""
        sign = 1 if self.worse == "higher" else -1
        known = [name for name, one in self.contrasts.items() if not math.isnan(one.estimate)]
        return max(known or self.contrasts, key=lambda name: sign * self.contrasts[name].estimate)

    @property
    def leading(self) -> Contrast:
        """The worst contrast."""
        return self.contrasts[self.name]

    def p_above(self, bound: float) -> float:
        """Return the p-value of the hypothesis that the worst difference is at most `bound`."""
        found = [one.p_above(bound) for one in self.contrasts.values()]
        return _smallest(found) if self.worse == "higher" else _largest(found)

    def p_below(self, bound: float) -> float:
        """Return the p-value of the hypothesis that the worst difference is at least `bound`."""
        found = [one.p_below(bound) for one in self.contrasts.values()]
        return _largest(found) if self.worse == "higher" else _smallest(found)

    def interval(self, alpha: float) -> Interval:
        """Return the interval of the worst difference; each end is a bound at one-sided `alpha`."""
        return self._ends(lambda one, level: one.interval(level), alpha)

    def random_questions(self, alpha: float) -> Interval:
        """Return the interval for other questions of this kind."""
        return self._ends(lambda one, level: one.random_questions(level), alpha)

    def _ends(self, of: Callable[[Contrast, float], Interval], alpha: float) -> Interval:
        """Return the end toward no harm at alpha / K, since any contrast may show it, and the other at alpha."""
        wide = [of(one, alpha / len(self.contrasts)) for one in self.contrasts.values()]
        own = [of(one, alpha) for one in self.contrasts.values()]
        if self.worse == "higher":
            return max(low for low, _ in wide), max(high for _, high in own)
        return min(low for low, _ in own), min(high for _, high in wide)


def _smallest(p_values: list[float]) -> float:
    known = [p for p in p_values if not math.isnan(p)]
    return min(1.0, len(p_values) * min(known)) if known else math.nan


def _largest(p_values: list[float]) -> float:
    return math.nan if any(map(math.isnan, p_values)) else max(p_values)


@dataclass(frozen=True)
class RateInteraction:
    """(candidate − baseline) under a cue, minus the same without it, for new draws for the same questions.

    The interval combines the score intervals of both contrasts by the method of variance estimates recovery (MOVER;
    Zou and Donner, Statistics in Medicine 27, 2008):

        low = d − √((d₁ − l₁)² + (u₀ − d₀)²),  high = d + √((u₁ − d₁)² + (d₀ − l₀)²)

    so that 0 events in few draws are no certainty, as they are for Student's t over questions.
    """

    plain: RateContrast
    cued: RateContrast

    @property
    def estimate(self) -> float:
        """The difference of both differences."""
        return self.cued.estimate - self.plain.estimate

    def interval(self, alpha: float) -> Interval:
        """Return the interval; each end is a bound at one-sided `alpha`."""
        low, high = self.cued.interval(alpha)
        plain_low, plain_high = self.plain.interval(alpha)
        cued, plain = self.cued.estimate, self.plain.estimate
        return (
            self.estimate - math.hypot(cued - low, plain_high - plain),
            self.estimate + math.hypot(high - cued, plain - plain_low),
        )

    def p_above(self, bound: float) -> float:
        """Return the one-sided level at which the interval's lower end is `bound`."""
        return self._level(lambda alpha: bound - self.interval(alpha)[0])

    def p_below(self, bound: float) -> float:
        """Return the one-sided level at which the interval's upper end is `bound`."""
        return self._level(lambda alpha: self.interval(alpha)[1] - bound)

    def _level(self, beyond: Callable[[float], float]) -> float:
        """Return the level at which `beyond`, which falls with it, is 0; larger ones than `_LARGEST` are given as 1.

        Near 1/2 an interval ends at its estimate, which at the edge of the range is not found by a change of sign.
        """
        if math.isnan(self.estimate):
            return math.nan
        if beyond(_LARGEST) >= 0:
            return 1.0
        first = -math.log10(_LARGEST)
        return float(10 ** -crossing(lambda decades: -beyond(10**-decades), first, _MOST_DECADES, 1e-6))
