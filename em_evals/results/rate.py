"""One rate with its intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from em_evals.stats import intervals


@dataclass(frozen=True)
class Rate:
    """A share with both intervals, all as fractions."""

    value: float
    fixed: intervals.Interval
    random: intervals.Interval

    @classmethod
    def of(cls, clusters: Iterable[tuple[int, int]]) -> Rate:
        """Return the rate of (events, draws) of each sampled unit."""
        counted = list(clusters)
        events, draws = sum(k for k, _ in counted), sum(n for _, n in counted)
        value = events / draws if draws else math.nan
        return cls(value, intervals.fixed_questions(events, draws), intervals.random_questions(counted))

    @classmethod
    def unknown(cls) -> Rate:
        """Return the rate of which nothing is known."""
        nowhere = math.nan, math.nan
        return cls(math.nan, nowhere, nowhere)
