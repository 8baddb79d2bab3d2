"""A rate over sampled questions: its beta-binomial posterior, valid for rare events and few questions.

Draws for one question are correlated, so 2,400 draws for 24 questions carry less information about *other* questions
than 2,400 independent draws. Question i has its own rate p_i ~ Beta(mu (1-rho)/rho, (1-mu) (1-rho)/rho): mu is the
rate over all such questions, rho the correlation between two draws for one question. Given both, the k_i events of
n_i draws are beta-binomial. The priors are Jeffreys' for a proportion, mu ~ Beta(1/2, 1/2), and
rho ~ Beta(1, 3 - 4 mu (1-mu)), whose mean goes from 1/4 for rare events to 1/3 at a rate of a half. Both are integrated
on a grid; nothing is fitted.

The prior of rho was chosen by coverage (benchmarks/interval_coverage.py). Beta(1, 4) holds a rate of 40% of correlation
0.3 in 92 to 93% with 8 questions, and of 2% with 33 questions in 92%; Beta(1, 2) at all rates nearly doubles the
upper end of no event. 25 published organisms agree with a correlation that grows with the rate: 0.02 to 0.16 below a
rate of 10%, 0.09 to 0.36 above. The prior is smooth, so that one event more never changes the kind of interval.

The posterior alone is not monotone: a tenth event that falls on a tenth question is evidence of a small rho, and its
upper end is lower than that of three events. An upper end is therefore the largest over the data and data with fewer
events that are spread evenly over the questions (a running maximum over 1 to 8 events, with fewer than 8 questions over
up to 4 a question); the lower end in the same way over non-events.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from em_evals.stats.special import log_sum_exp, special

Interval = tuple[float, float]
Clusters = Sequence[tuple[int, int]]
"""(events, draws) of each question."""

_COARSE, _FINE, _CORRELATIONS = 120, 320, 32
_NEGLIGIBLE = 30.0
"""Grid points whose log posterior is this far below the maximum are dropped when the grid is refined."""
_FEW = 8
"""Upper ends fall with more events, one a question, from 2 to 4 events on until about 10, and rise from there on."""
_CELLS = 4_000_000
"""Numbers held at once: a bound on memory."""


def rate_intervals(datasets: Sequence[Clusters], confidence: float) -> list[Interval]:
    """Return equal-tailed posterior intervals of rates over all questions of a kind, for each of several data sets.

    They are found faster where they share numbers of draws.

    Args:
        datasets: (events, draws) of two or more questions, every question with draws.
        confidence: the intervals' level, such as 0.95.

    Returns:
        (low, high) as fractions; low is 0 without events, high is 1 if every draw is an event.

    Example:
        >>> [(low, high)] = rate_intervals([[(0, 100)] * 24], 0.95)
        >>> low, round(high, 3)
        (0.0, 0.019)
    """
    return [
        (1 - _highest(1 - low, _complement(clusters), confidence), _highest(high, clusters, confidence))
        for clusters, (low, high) in zip(datasets, _posterior_intervals(datasets, confidence), strict=True)
    ]


def _posterior_intervals(datasets: Sequence[Clusters], confidence: float) -> list[Interval]:
    """Return the posterior's equal-tailed interval for each of several data sets, on one grid."""
    counted = [Counter(clusters) for clusters in datasets]
    edges, weights = _posterior(counted)
    tail = (1 - confidence) / 2
    found = []
    for clusters, own in zip(datasets, weights, strict=True):
        low, high = (float(np.sin(_quantile(edges, own, level)) ** 2) for level in (tail, 1 - tail))
        events, draws = sum(k for k, _ in clusters), sum(n for _, n in clusters)
        found.append((0.0 if events == 0 else low, 1.0 if events == draws else high))
    return found


def _highest(high: float, clusters: Clusters, confidence: float) -> float:
    """Return the largest of the data's upper end and those of fewer events that are spread evenly."""
    counts = sorted((k for k, _ in clusters), reverse=True)
    events = sum(counts)
    ends = _few_events(tuple(sorted(n for _, n in clusters)), confidence) if events else ()
    if not ends or (events > len(ends) and high > max(ends)):
        return high
    below: list[float] = []
    for number, few in enumerate(ends[:events], start=1):
        rounds, rest = divmod(number, len(clusters))
        even = [rounds + (place < rest) for place in range(len(clusters))]
        if even == counts:
            high = few  # the same data, on the common grid: rounding must not make it larger than more events
        elif all(one <= other for one, other in zip(even, counts, strict=True)):
            below.append(few)
    return max(high, *below) if below else high


@lru_cache(maxsize=256)
def _few_events(draws: tuple[int, ...], confidence: float) -> tuple[float, ...]:
    """Return the upper ends for 1, 2, … events in rounds: one for every question, then a second, ….

    They depend on the numbers of draws alone, so that the same ends are compared whatever the data.
    """
    questions = len(draws)
    most = min(max(_FEW, 4 * questions if questions < _FEW else 0), questions * draws[0])
    datasets = [
        [(events // questions + (place < events % questions), number) for place, number in enumerate(draws)]
        for events in range(1, most + 1)
    ]
    return tuple(high for _, high in _posterior_intervals(datasets, confidence))


def _complement(clusters: Clusters) -> Clusters:
    return [(draws - events, draws) for events, draws in clusters]


def _posterior(
    counted: Sequence[Counter[tuple[int, int]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (cell edges of the grid, probability of each cell by data set), with the rate as mu = sin²(angle).

    Jeffreys' prior of mu is uniform in the angle. The coarse grid locates the mass, the fine grid covers only that.
    """
    first, last = 0.0, math.pi / 2
    for cells in (_COARSE, _FINE):
        edges = np.linspace(first, last, cells + 1)
        logs = _log_marginal(counted, np.sin((edges[:-1] + edges[1:]) / 2) ** 2)
        logs -= logs.max(axis=1, keepdims=True)
        likely = np.flatnonzero((logs > -_NEGLIGIBLE).any(axis=0))
        first, last = edges[likely[0]], edges[likely[-1] + 1]
    weights = np.exp(logs)
    return edges, weights / weights.sum(axis=1, keepdims=True)


def _log_marginal(
    counted: Sequence[Counter[tuple[int, int]]], rates: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the log-likelihood of each rate, averaged over the prior of the correlation: [data sets, rates].

    Args:
        counted: how often each (events, draws) occurs in each data set.
        rates: [rates].
    """
    correlations, prior = _prior(rates)
    # a + b of the beta distribution of questions' rates
    spread = ((1 - correlations) / correlations)[:, None]
    a, b = rates * spread, (1 - rates) * spread
    start = special.gammaln(a), special.gammaln(b), special.gammaln(spread)
    pairs = sorted(set().union(*counted))
    # log B(k + a, n - k + b) - log B(a, b) as rising factorials, which stay accurate where a or b is tiny
    table = np.stack(
        [
            _log_rising(a, k, start[0]) + _log_rising(b, n - k, start[1]) - _log_rising(spread, n, start[2])
            for k, n in pairs
        ]
    ).reshape(len(pairs), -1)
    times = np.array([[own[pair] for pair in pairs] for own in counted], dtype=float)
    step = max(1, _CELLS // a.size)
    return np.concatenate(
        [
            log_sum_exp((times[first : first + step] @ table).reshape(-1, *a.shape), prior, axis=1)
            for first in range(0, len(times), step)
        ]
    )


def _prior(rates: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return correlations and each one's share of the prior at each rate: [correlations], [correlations, rates].

    The correlations are quantiles of Beta(1, 2), whose distribution function is 1 - (1 - rho)^2, at squared levels:
    they are dense near 0, where many draws separate small correlations. A rate's own prior Beta(1, b) re-weights them.
    """
    roots = (np.arange(_CORRELATIONS) + 0.5) / _CORRELATIONS
    correlations = 1 - np.sqrt(1 - roots**2)
    density = roots[:, None] * (1 - correlations[:, None]) ** (1 - 4 * rates * (1 - rates))
    return correlations, density / density.sum(axis=0)


def _log_rising(
    start: NDArray[np.float64], steps: int, log_gamma: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return log(start (start + 1) … (start + steps - 1)).

    Args:
        start: any shape.
        steps: number of factors.
        log_gamma: of `start`, which many calls share.
    """
    return special.gammaln(start + steps) - log_gamma if steps else np.zeros_like(start)


def _quantile(edges: NDArray[np.float64], weights: NDArray[np.float64], level: float) -> float:
    """Return the quantile at `level`, interpolated linearly inside a cell."""
    return float(np.interp(level, np.concatenate([[0.0], np.cumsum(weights)]), edges))
