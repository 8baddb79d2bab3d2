"""The math of two proportions: score statistics on effective draws, stratified exact test, bounds by inversion."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from em_evals.stats.special import p_value, special

Interval = tuple[float, float]

_PRIOR_DRAWS = 2.0
"""Prior draws that shrink a question's rate toward the pooled rate before its variance is estimated."""
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Arm:
    """A stratified rate with its equivalent number of simple random draws."""

    rate: float
    draws: float


def effective(clusters: Sequence[tuple[int, int]], weights: NDArray[np.float64]) -> Arm:
    """Return a weighted rate over questions with its effective number of draws; see stats/rates.py.

    Args:
        clusters: (events, draws) of each question, draws positive.
        weights: weights of the questions, summing to 1.
    """
    events, draws = np.array(clusters, dtype=float).T
    rate = float(weights @ (events / draws))
    plain = 1 / float(np.sum(weights**2 / draws))
    total = int(events.sum())
    if total in (0, int(draws.sum())):  # compare counts: a weighted sum of ones can be 0.9999999999999999
        return Arm(float(total > 0), plain)
    shrunk = (events + _PRIOR_DRAWS * rate) / (draws + _PRIOR_DRAWS)
    # For draws at one common rate, the expectation of p̃(1−p̃) is this share of p(1−p); dividing by it removes the bias.
    expected = 1 - draws / (draws + _PRIOR_DRAWS) ** 2
    variance = float(np.sum(weights**2 / draws * shrunk * (1 - shrunk) / expected))
    return Arm(rate, max(plain, rate * (1 - rate) / variance))


def score(bound: float, before: Arm, after: Arm) -> float:
    """Return Miettinen and Nurminen's z for the hypothesis `after` − `before` = `bound`; positive if it is larger.

    The variance is the one under the hypothesis, times N/(N−1).
    """
    low, high = _restricted(bound, before, after)
    n1, n0 = after.draws, before.draws
    variance = (high * (1 - high) / n1 + low * (1 - low) / n0) * (n1 + n0) / (n1 + n0 - 1)
    gap = after.rate - before.rate - bound
    # Test for an exact 0: small variances are valid, and an infinite z near the estimate would end the interval there.
    if variance == 0:
        return math.copysign(math.inf, gap) if abs(gap) > _SMALLEST else 0.0
    return gap / math.sqrt(variance)


def cautious(bound: float, before: Arm, after: Arm) -> float:
    """Return `score`, nearer to 0 where its skewness makes large values likelier than the normal distribution says.

    With few draws on one side and many on the other the score test rejects up to twice as often as it should. The
    correction is Gart and Nam's (Biometrics 44, 1988), in the form of Laud (Pharmaceutical Statistics 16, 2017):
    z = c + s (c² − 1), with s a sixth of the skewness under the hypothesis, is solved for c.
    """
    z = score(bound, before, after)
    low, high = _restricted(bound, before, after)
    second, third = (
        high * (1 - high) * (1 - 2 * high) ** power / after.draws ** (1 + power)
        + (-1) ** power * low * (1 - low) * (1 - 2 * low) ** power / before.draws ** (1 + power)
        for power in (0, 1)
    )
    s = third / second**1.5 / 6 if second else 0.0
    if s * z <= 0 or math.isinf(z):
        return z
    corrected = (math.sqrt(1 + 4 * s * (z + s)) - 1) / (2 * s)
    return min(z, corrected, key=abs)


def _restricted(bound: float, before: Arm, after: Arm) -> tuple[float, float]:
    """Return both rates, `before` first, that maximize the likelihood given that they differ by `bound`.

    The first is the root of a cubic (Farrington and Manning, Statistics in Medicine 9, 1990).
    """
    n1, n0 = after.draws, before.draws
    x1, x0 = after.rate * n1, before.rate * n0
    total, events = n1 + n0, x1 + x0
    # The likelihood equation of p₀ is p₀³ + 3·squared·p₀² + linear·p₀ + constant = 0. Its roots are real; the
    # trigonometric formula below gives the one with both rates in [0, 1]. The clamps only undo rounding.
    squared = ((n1 + 2 * n0) * bound - total - events) / (3 * total)
    linear = ((n0 * bound - total - 2 * x0) * bound + events) / total
    constant = x0 * bound * (1 - bound) / total
    q = squared**3 - squared * linear / 2 + constant / 2
    p = math.copysign(math.sqrt(max(squared**2 - linear / 3, 0.0)), q)
    angle = (math.pi + math.acos(min(max(q / p**3, -1.0), 1.0))) / 3 if p else math.pi / 2
    low = min(max(2 * p * math.cos(angle) - squared, max(0.0, -bound)), min(1.0, 1 - bound))
    return low, min(low + bound, 1.0)


@lru_cache(maxsize=1024)
def score_interval(before: Arm, after: Arm, alpha: float) -> Interval:
    """Return the differences `after` − `before` that the score test does not reject, at one-sided `alpha` each."""
    return invert(lambda bound: score(bound, before, after), float(special.ndtri(1 - alpha)), -1, 1)


def exact_p_higher(tables: Sequence[tuple[int, int, int, int]]) -> float:
    """Return the stratified Fisher p-value: P(at least this many events in the first group | each table's totals).

    Args:
        tables: (events, draws) of the first group and (events, draws) of the second, one table per question.

    Returns:
        The one-sided p-value, never 0; 1 if the totals leave no table any other outcome.
    """
    # The sum of independent hypergeometric counts has the convolution of their distributions; index 0 of
    # `distribution` is the smallest possible sum, and `seen` is the observed excess over it.
    seen, distribution = 0, np.ones(1)
    for first, first_draws, second, second_draws in tables:
        events = first + second
        lowest, highest = max(0, events - second_draws), min(events, first_draws)
        seen += first - lowest
        if lowest < highest:
            ways = np.arange(lowest, highest + 1)
            logs = _log_choose(first_draws, ways) + _log_choose(second_draws, events - ways)
            chances = np.exp(logs - _log_choose(first_draws + second_draws, np.array(events)))
            distribution = np.convolve(distribution, chances)
    return p_value(min(1.0, distribution[seen:].sum()))


def _log_choose(draws: int, events: NDArray[np.int_]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = (
        special.gammaln(draws + 1) - special.gammaln(events + 1) - special.gammaln(draws - events + 1)
    )
    return result


def invert(z: Callable[[float], float], reach: float, lowest: float, highest: float) -> Interval:
    """Return the two bounds at which a decreasing score statistic equals +`reach` and −`reach`."""

    def root(level: float, fallback: float) -> float:
        edges = lowest + 1e-9, highest - 1e-9
        # Without a sign change the statistic rejects nothing up to the edge of the range.
        if not z(edges[0]) > level > z(edges[1]):
            return fallback
        return crossing(lambda bound: z(bound) - level, *edges)

    return root(reach, lowest), root(-reach, highest)


def crossing(decreasing: Callable[[float], float], low: float, high: float, precision: float = 1e-9) -> float:
    """Return where a decreasing function crosses zero between `low` and `high`, by bisection.

    Importing scipy.optimize for this would take longer than a whole judgment of 2,400 draws.
    """
    while high - low > precision:
        middle = (low + high) / 2
        low, high = (middle, high) if decreasing(middle) > 0 else (low, middle)
    return (low + high) / 2
