"""95% intervals for rates and differences, that hold for rare events and for answers clustered in questions.

Two questions, two intervals. *Fixed questions*: what would new draws to these very questions give? *Random
questions*: what would other questions of this kind give? The first is for comparing models on one set, the
second for speaking about misalignment in general; it is the wider one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Interval = tuple[float, float]

CONFIDENCE = 0.95


def fixed_questions(events: int, draws: int) -> Interval:
    """Wilson's score interval on all draws together (Wilson 1927).

    Draws to different questions have different rates; pooling them as if they had one rate overstates the
    variance of their mean, so the interval is slightly wide, never narrow. Zero events give an upper bound.

    Args:
        events: draws that count.
        draws: all draws.

    Returns:
        (low, high) as fractions; (nan, nan) without draws.
    """
    if draws == 0:
        return math.nan, math.nan
    result = stats.binomtest(events, draws).proportion_ci(CONFIDENCE, method="wilson")
    return float(result.low), float(result.high)


def random_questions(clusters: Sequence[tuple[int, int]]) -> Interval:
    """Korn and Graubard's interval for a rate in clusters (Survey Methodology 24, 1998).

    A Clopper-Pearson interval on the effective number of draws, p(1-p)/v, where v is the linearised variance of
    the ratio between clusters, with Student's t for few clusters. Without events (or with nothing else) the data
    cannot say how clustered events are; then each question counts as one observation, the worst case.

    Args:
        clusters: (events, draws) of each question.

    Returns:
        (low, high) as fractions; (nan, nan) without draws.
    """
    counted = [(k, n) for k, n in clusters if n > 0]
    events, draws, questions = sum(k for k, _ in counted), sum(n for _, n in counted), len(counted)
    if draws == 0:
        return math.nan, math.nan
    rate = events / draws
    effective = float(questions)
    if 0 < events < draws and questions > 1:
        residuals = np.array([k - rate * n for k, n in counted]) / draws
        variance = questions / (questions - 1) * float(np.sum(residuals**2))
        tail = 1 - (1 - CONFIDENCE) / 2
        if variance > 0:
            student = stats.t.ppf(tail, draws - 1) / stats.t.ppf(tail, questions - 1)
            effective = min(float(draws), rate * (1 - rate) / variance * student**2)
        else:
            effective = float(draws)
    return _clopper_pearson(rate * effective, effective)


def _clopper_pearson(events: float, draws: float) -> Interval:
    """The exact interval, for effective (fractional) counts too."""
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if events <= 0 else float(stats.beta.ppf(tail, events, draws - events + 1))
    high = 1.0 if events >= draws else float(stats.beta.ppf(1 - tail, events + 1, draws - events))
    return low, high


def difference(before: tuple[int, int], after: tuple[int, int]) -> Interval:
    """Newcombe's interval for the difference of two rates, after − before (Statistics in Medicine 17, 1998, method 10).

    Args:
        before: (events, draws) of one model.
        after: (events, draws) of the other.

    Returns:
        (low, high) as differences of fractions; (nan, nan) where either has no draws.
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


def mean(values: Sequence[float] | NDArray[np.float64], confidence: float = CONFIDENCE) -> Interval:
    """Student's t interval for the mean of independent values (questions' means, paired differences).

    Args:
        values: the values.
        confidence: raise it where several intervals must hold together (Bonferroni: 1 - 0.05 / number).

    Returns:
        (low, high) in the values' unit; (nan, nan) with fewer than two values.
    """
    if len(values) < 2:
        return math.nan, math.nan
    array = np.asarray(values, dtype=float)
    spread = float(array.std(ddof=1)) / math.sqrt(len(array))
    reach = float(stats.t.ppf(1 - (1 - confidence) / 2, len(array) - 1)) * spread
    return float(array.mean()) - reach, float(array.mean()) + reach
