"""Several contrasts of the same numbers, all of which must agree: the largest p-value and the widest interval count."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from em_evals.stats.means import Contrast
from em_evals.stats.proportions import Interval


class Tested(Protocol):
    """What a further contrast must be able to say."""

    def p_above(self, bound: float) -> float:
        """Return the one-sided p-value of the hypothesis that the difference is at most `bound`."""

    def p_below(self, bound: float) -> float:
        """Return the one-sided p-value of the hypothesis that the difference is at least `bound`."""

    def interval(self, alpha: float) -> Interval:
        """Return the interval at one-sided `alpha`; infinite ends in reverse order say nothing."""


class Several(ABC):
    """Several contrasts, of which one says levels, effect and units."""

    @property
    @abstractmethod
    def leading(self) -> Contrast:
        """That one."""

    @property
    def baseline(self) -> float:
        """The baseline's value."""
        return self.leading.baseline

    @property
    def candidate(self) -> float:
        """The candidate's value."""
        return self.leading.candidate

    @property
    def estimate(self) -> float:
        """Candidate − baseline."""
        return self.leading.estimate

    @property
    def units(self) -> tuple[int, int]:
        """Number of draws (or items) of baseline and candidate."""
        return self.leading.units

    @property
    def effect(self) -> float:
        """The effect size."""
        return self.leading.effect

    @property
    def effect_name(self) -> str:
        """Symbol of the effect size."""
        return self.leading.effect_name


@dataclass(frozen=True)
class Strictest(Several):
    """A contrast that rejects only where the first and all others reject; levels and effect are the first's."""

    first: Contrast
    others: Sequence[Tested]
    _known: dict[float, list[Interval]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def leading(self) -> Contrast:
        """The first."""
        return self.first

    def p_above(self, bound: float) -> float:
        """Return the largest p-value."""
        return max(one.p_above(bound) for one in (self.first, *self.others))

    def p_below(self, bound: float) -> float:
        """Return the largest p-value."""
        return max(one.p_below(bound) for one in (self.first, *self.others))

    def interval(self, alpha: float) -> Interval:
        """Return the hull of all intervals."""
        return self._hull(self.first.interval(alpha), self._others(alpha))

    def random_questions(self, alpha: float) -> Interval:
        """Return the hull of the first's interval for other questions and all others'."""
        return self._hull(self.first.random_questions(alpha), self._others(alpha))

    def _others(self, alpha: float) -> list[Interval]:
        if alpha not in self._known:
            self._known[alpha] = [one.interval(alpha) for one in self.others]
        return self._known[alpha]

    def _hull(self, own: Interval, others: Sequence[Interval]) -> Interval:
        return min(low for low, _ in [own, *others]), max(high for _, high in [own, *others])
