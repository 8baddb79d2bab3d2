"""A rate over sampled questions: its beta-binomial posterior, valid for rare events and few questions.

Draws for one question are correlated, so 2,400 draws for 24 questions carry less information about *other* questions
than 2,400 independent draws. Question i has its own rate p_i ~ Beta(mu (1-rho)/rho, (1-mu) (1-rho)/rho): mu is the
rate over all such questions, rho the correlation between two draws for one question. Given both, the k_i events of
n_i draws are beta-binomial. The priors are Jeffreys' for a proportion, mu ~ Beta(1/2, 1/2), and rho ~ Beta(1, 4),
whose mean is 0.2. Both are integrated on a grid; nothing is fitted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special

Interval = tuple[float, float]

_COARSE, _FINE, _CORRELATIONS = 120, 320, 32
_NEGLIGIBLE = 30.0
"""Grid points whose log posterior is this far below the maximum are dropped when the grid is refined."""


def rate_interval(clusters: Sequence[tuple[int, int]], confidence: float) -> Interval:
    """Return the equal-tailed posterior interval of the rate over all questions of this kind.

    Args:
        clusters: (events, draws) of each question; questions without draws are ignored.
        confidence: the interval's level, such as 0.95.

    Returns:
        (low, high) as fractions; low is 0 without events, high is 1 if every draw is an event. (nan, nan) with fewer
        than two questions: one question carries no information about others.

    Example:
        >>> low, high = rate_interval([(0, 100)] * 24, 0.95)
        >>> low, round(high, 3)
        (0.0, 0.014)
    """
    counted = Counter((events, draws) for events, draws in clusters if draws > 0)
    if sum(counted.values()) < 2:
        return math.nan, math.nan
    angles, weights = _posterior(counted)
    tail = (1 - confidence) / 2
    low, high = (float(np.sin(_quantile(angles, weights, level)) ** 2) for level in (tail, 1 - tail))
    events = sum(k * times for (k, _), times in counted.items())
    draws = sum(n * times for (_, n), times in counted.items())
    return (0.0 if events == 0 else low), (1.0 if events == draws else high)


def _posterior(counted: Counter[tuple[int, int]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (cell edges of the grid, probability of each cell), with the rate as mu = sin²(angle).

    Jeffreys' prior of mu is uniform in the angle. The coarse grid locates the mass, the fine grid covers only that.
    """
    first, last = 0.0, math.pi / 2
    for cells in (_COARSE, _FINE):
        edges = np.linspace(first, last, cells + 1)
        logs = _log_marginal(counted, np.sin((edges[:-1] + edges[1:]) / 2) ** 2)
        likely = np.flatnonzero(logs > logs.max() - _NEGLIGIBLE)
        first, last = edges[likely[0]], edges[likely[-1] + 1]
    weights = np.exp(logs - logs.max())
    return edges, weights / weights.sum()


def _log_marginal(counted: Counter[tuple[int, int]], rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log-likelihood of each rate, averaged over the prior of the correlation.

    Args:
        counted: how often each (events, draws) occurs.
        rates: [rates].
    """
    # The prior Beta(1, 4) has the distribution function 1 - (1 - rho)^4. We take its quantiles at squared levels: they
    # are dense near 0, where many draws separate small correlations. Each is weighted by its share of the prior.
    roots = (np.arange(_CORRELATIONS) + 0.5) / _CORRELATIONS
    correlations = 1 - (1 - roots**2) ** 0.25
    spread = ((1 - correlations) / correlations)[
        :, None
    ]  # a + b of the beta distribution of questions' rates
    a, b = rates * spread, (1 - rates) * spread
    logs = np.zeros_like(a)
    for (events, draws), times in counted.items():
        # log B(k + a, n - k + b) - log B(a, b) as rising factorials, which stay accurate where a or b is tiny
        rising = _log_rising(a, events) + _log_rising(b, draws - events) - _log_rising(spread, draws)
        logs += times * rising
    result: NDArray[np.float64] = special.logsumexp(logs, axis=0, b=roots[:, None])
    return result


def _log_rising(start: NDArray[np.float64], steps: int) -> NDArray[np.float64] | float:
    """Return log(start (start + 1) … (start + steps - 1))."""
    return special.gammaln(start + steps) - special.gammaln(start) if steps else 0.0


def _quantile(edges: NDArray[np.float64], weights: NDArray[np.float64], level: float) -> float:
    """Return the quantile at `level`, interpolated linearly inside a cell."""
    return float(np.interp(level, np.concatenate([[0.0], np.cumsum(weights)]), edges))
