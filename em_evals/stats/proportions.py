"""The math of two proportions: score statistics on effective draws, the stratified exact test, bounds by inversion."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Interval = tuple[float, float]

_PRIOR_DRAWS = 2.0
"""How far a question's own rate is drawn toward the rate of all before its variance is estimated, in draws."""
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Arm:
    """A stratified rate as if it came from this many simple draws."""

    rate: float
    draws: float


def effective(clusters: Sequence[tuple[int, int]], weights: NDArray[np.float64]) -> Arm:
    """A weighted rate over questions and its effective number of draws; see rate_contrast.py.

    Args:
        clusters: (events, draws) of each question, draws positive.
        weights: of the questions, adding up to one.
    """
    events, draws = np.array(clusters, dtype=float).T
    rate = float(weights @ (events / draws))
    plain = 1 / float(np.sum(weights**2 / draws))
    total = int(events.sum())
    if total in (0, int(draws.sum())):  # on the counts: a weighted sum of ones may be 0.9999999999999999
        return Arm(float(total > 0), plain)
    shrunk = (events + _PRIOR_DRAWS * rate) / (draws + _PRIOR_DRAWS)
    # Of draws with one rate, p̃(1−p̃) expects this share of p(1−p).
    expected = 1 - draws / (draws + _PRIOR_DRAWS) ** 2
    variance = float(np.sum(weights**2 / draws * shrunk * (1 - shrunk) / expected))
    return Arm(rate, max(plain, rate * (1 - rate) / variance))


def score(bound: float, before: Arm, after: Arm) -> float:
    """Miettinen and Nurminen's z for the hypothesis that `after` − `before` is `bound`; above 0 if it is more.

    The variance is what it would be if the bound were true: p̃₀ maximises the likelihood under p₁ = p₀ + bound,
    the root of a cubic (Farrington and Manning, Statistics in Medicine 9, 1990), times N/(N−1).
    """
    n1, n0 = after.draws, before.draws
    x1, x0 = after.rate * n1, before.rate * n0
    total, events = n1 + n0, x1 + x0
    squared = ((n1 + 2 * n0) * bound - total - events) / (3 * total)
    linear = ((n0 * bound - total - 2 * x0) * bound + events) / total
    constant = x0 * bound * (1 - bound) / total
    q = squared**3 - squared * linear / 2 + constant / 2
    p = math.copysign(math.sqrt(max(squared**2 - linear / 3, 0.0)), q)
    angle = (math.pi + math.acos(min(max(q / p**3, -1.0), 1.0))) / 3 if p else math.pi / 2
    low = min(max(2 * p * math.cos(angle) - squared, max(0.0, -bound)), min(1.0, 1 - bound))
    high = min(low + bound, 1.0)
    variance = (high * (1 - high) / n1 + low * (1 - low) / n0) * total / (total - 1)
    gap = after.rate - before.rate - bound
    # Only an exact 0: a small variance is one, and an infinite z near the estimate would end the interval there.
    if variance == 0:
        return math.copysign(math.inf, gap) if abs(gap) > _SMALLEST else 0.0
    return gap / math.sqrt(variance)


def exact_p_higher(tables: Sequence[tuple[int, int, int, int]]) -> float:
    """Stratified Fisher test: the chance of at least so many events in the first group, given each table's totals.

    Args:
        tables: (events, draws) of the first group and (events, draws) of the second, one table a question.

    Returns:
        The one-sided p-value; 1 where no table could have come out otherwise.
    """
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
    return float(min(1.0, distribution[seen:].sum()))


def _log_choose(draws: int, events: NDArray[np.int_]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = (
        special.gammaln(draws + 1) - special.gammaln(events + 1) - special.gammaln(draws - events + 1)
    )
    return result


def invert(z: Callable[[float], float], reach: float, lowest: float, highest: float) -> Interval:
    """The bounds that a falling score statistic does not reject at ±`reach`."""

    def root(level: float, fallback: float) -> float:
        edges = lowest + 1e-9, highest - 1e-9
        low, high = z(edges[0]) - level, z(edges[1]) - level
        if not low > 0 > high:
            return fallback
        return float(optimize.brentq(lambda bound: z(bound) - level, *edges, xtol=1e-9))

    return root(reach, lowest), root(-reach, highest)
