"""95% intervals for rates and differences, valid for rare events and for answers clustered in questions.

Quantiles come from scipy.special: importing scipy.stats would take longer than counting 2,400 draws.

Two questions, two intervals. *Fixed questions*: what would new draws for these same questions give? *Random
questions*: what would other questions of this kind give? Use the first to compare models on one set, the second,
wider one for claims about misalignment in general.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from em_evals.stats import ties
from em_evals.stats.clusters import rate_intervals
from em_evals.stats.special import special

Interval = tuple[float, float]

CONFIDENCE = 0.95


def fixed_questions(events: int, draws: int) -> Interval:
    """Return Wilson's score interval on all draws pooled (Wilson 1927).

    Draws for different questions have different rates. Pooling them as if they had one rate overstates the variance of
    their mean, so the interval is slightly wide, never narrow. With zero events the upper bound is positive.

    Args:
        events: number of draws that count.
        draws: number of all draws.

    Returns:
        (low, high) as fractions; (nan, nan) without draws.
    """
    if draws == 0:
        return math.nan, math.nan
    z, share = float(special.ndtri((1 + CONFIDENCE) / 2)), events / draws
    center = (share + z * z / (2 * draws)) / (1 + z * z / draws)
    reach = z * math.sqrt(share * (1 - share) / draws + z * z / (4 * draws * draws)) / (1 + z * z / draws)
    return (center - reach if events else 0.0), (center + reach if events < draws else 1.0)


def random_questions(clusters: Sequence[tuple[int, int]]) -> Interval:
    """Return the posterior interval of a rate over other questions of this kind; see stats/clusters.py.

    It includes the interval for these questions, since nothing is known better about others than about those asked.

    Args:
        clusters: (events, draws) of each question.

    Returns:
        (low, high) as fractions; (nan, nan) with fewer than two questions that have draws.
    """
    known = tuple(sorted((events, draws) for events, draws in clusters if draws > 0))
    return _of_one(known) if len(known) > 1 else (math.nan, math.nan)


@lru_cache(maxsize=1024)
def _of_one(clusters: tuple[tuple[int, int], ...]) -> Interval:
    """Return `random_questions`; shares of nothing or of all draws recur from model to model."""
    return random_questions_each([clusters])[0]


def random_questions_each(datasets: Sequence[Sequence[tuple[int, int]]]) -> list[Interval]:
    """Return `random_questions` of each of several data sets; faster where they share numbers of draws.

    Args:
        datasets: (events, draws) of two or more questions, every question with draws.
    """
    found = []
    for clusters, (low, high) in zip(datasets, rate_intervals(datasets, CONFIDENCE), strict=True):
        events, draws = sum(k for k, _ in clusters), sum(n for _, n in clusters)
        ends = [(low, high), fixed_questions(events, draws)]
        found.append((max(0.0, min(low for low, _ in ends)), min(1.0, max(high for _, high in ends))))
    return found


def difference(before: tuple[int, int], after: tuple[int, int]) -> Interval:
    """Return Newcombe's interval for a difference of two rates, after − before (Stat. in Medicine 17, 1998, method 10).

    Args:
        before: (events, draws) of one model.
        after: (events, draws) of the other.

    Returns:
        (low, high) as differences of fractions; (nan, nan) if either has no draws.
    """
    if before[1] == 0 or after[1] == 0:
        return math.nan, math.nan
    (low, high), (low_after, high_after) = fixed_questions(*before), fixed_questions(*after)
    rate, rate_after = before[0] / before[1], after[0] / after[1]
    change = rate_after - rate
    return (
        change - math.hypot(rate_after - low_after, high - rate),
        change + math.hypot(high_after - rate_after, rate - low),
    )


def mean_difference(
    before: Sequence[float] | NDArray[np.float64], after: Sequence[float] | NDArray[np.float64]
) -> Interval:
    """Return Welch's t interval for the difference of two means of independent values, after - before.

    Returns:
        (low, high) in the unit of the values; (nan, nan) with fewer than two values on either side.

    Example:
        >>> low, high = mean_difference([0.0, 1.0, 2.0], [3.0, 4.0, 5.0])
        >>> round(low, 2), round(high, 2)
        (0.73, 5.27)
    """
    one, other = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if min(len(one), len(other)) < 2:
        return math.nan, math.nan
    parts = [float(values.var(ddof=1)) / len(values) for values in (one, other)]
    change, error = float(other.mean() - one.mean()), math.sqrt(sum(parts))
    if error == 0:
        return change, change
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (one, other), strict=True)
    )
    reach = float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return change - reach, change + reach


def mean(values: Sequence[float] | NDArray[np.float64], confidence: float = CONFIDENCE) -> Interval:
    """Return Student's t interval for the mean of independent values (questions' means, paired differences).

    Args:
        values: the values.
        confidence: raise it if several intervals must hold together (Bonferroni: 1 - 0.05 / number).

    Returns:
        (low, high) in the unit of the values; (nan, nan) with fewer than two values, or with so few equal ones that
        they show nothing (see ties.py).
    """
    if len(values) < 2:
        return math.nan, math.nan
    array = np.asarray(values, dtype=float)
    if ties.equal(array):
        return ties.interval(float(array.mean()), len(array), (1 - confidence) / 2)
    spread = float(array.std(ddof=1)) / math.sqrt(len(array))
    reach = float(special.stdtrit(len(array) - 1, (1 + confidence) / 2)) * spread
    return float(array.mean()) - reach, float(array.mean()) + reach
