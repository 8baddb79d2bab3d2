"""The difference of two arms' rates over clusters that both were measured on: questions, roles, seeds.

Clusters are the sample: the difference is for other clusters of their kind. With few of them a percentile bootstrap is
too narrow (of 8 normal differences it reaches about 1.83 standard errors, where 95% need Student's 2.36; Cameron,
Gelbach and Miller 2008, Rev. of Economics and Statistics 90). Student's t over the clusters' differences is used, from
20 clusters on a studentized bootstrap. Clusters with unequal draws count as fewer (see weighted_mean.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from em_evals.stats import intervals, ties, weighted_mean
from em_evals.stats.bootstrap import StudentizedMean
from em_evals.stats.intervals import Interval
from em_evals.stats.special import special

Clusters = Mapping[str, tuple[int, int]]
"""(events, draws) of each cluster."""

Floats = NDArray[np.float64]

_MANY = 20
_EXACT = 16
"""Up to so many clusters, every pattern of signs is counted."""
_RESAMPLES = 10_000
_SEED = 0


@dataclass(frozen=True)
class ClusterContrast:
    """Second arm - first arm, each cluster with its share of the draws in both arms.

    Attributes:
        estimate: difference of the rates over the common clusters.
        interval: 95%, for other clusters of this kind; NaN with fewer than two.
        p_value: two-sided, exact: how many patterns of signs of the clusters' differences are as extreme.
        bootstrap: the percentile bootstrap over clusters that papers report; too narrow with few clusters.
        clusters: number of common clusters.
        rates: of both arms over the common clusters.
    """

    estimate: float
    interval: Interval
    p_value: float
    bootstrap: Interval
    clusters: int
    rates: tuple[float, float]

    @classmethod
    def of(cls, first: Clusters, second: Clusters) -> ClusterContrast:
        """Compare two arms on the clusters that have draws in both; NaN without any."""
        common = [name for name, (_, n) in first.items() if n and second.get(name, (0, 0))[1]]
        if not common:
            nowhere = math.nan, math.nan
            return cls(math.nan, nowhere, math.nan, nowhere, 0, nowhere)
        counts = np.array([(*first[name], *second[name]) for name in common], dtype=float)
        events_a, draws_a, events_b, draws_b = counts.T
        # Mantel and Haenszel's weights: with equal draws, the pooled rates.
        weights = draws_a * draws_b / (draws_a + draws_b)
        weights /= weights.sum()
        rates = float(weights @ (events_a / draws_a)), float(weights @ (events_b / draws_b))
        differences = events_b / draws_b - events_a / draws_a
        estimate = float(weights @ differences)
        if len(common) < 2:  # one cluster says nothing of others
            interval = math.nan, math.nan
        elif not ties.equal(differences):
            interval = _interval(differences, weights)
        else:  # no cluster differs from another, as where nothing happened in either arm
            totals = [(int(k.sum()), int(n.sum())) for k, n in ((events_a, draws_a), (events_b, draws_b))]
            interval = intervals.difference(totals[0], totals[1])
        p_value = _sign_flips(weights * differences)
        bootstrap = _percentiles(_parts(differences, weights))
        return cls(estimate, interval, p_value, bootstrap, len(common), rates)


def _parts(differences: Floats, weights: Floats) -> Floats:
    """Return each cluster's part of the weighted mean, on the scale of a mean."""
    estimate = float(weights @ differences)
    return estimate + len(weights) * weights * (differences - estimate)


def _interval(differences: Floats, weights: Floats) -> Interval:
    alpha, freedom = (1 - intervals.CONFIDENCE) / 2, weighted_mean.freedom(weights)
    if freedom + 1 > _MANY - 1e-9:
        return StudentizedMean.of(_parts(differences, weights), (-1.0, 1.0)).interval(alpha)
    estimate = float(weights @ differences)
    reach = float(special.stdtrit(freedom, 1 - alpha)) * weighted_mean.error(differences, weights)
    return max(-1.0, estimate - reach), min(1.0, estimate + reach)


def _sign_flips(parts: Floats) -> float:
    """Return the share of sign patterns of the differences with a weighted mean as far from 0 (Fisher's test).

    Args:
        parts: [clusters], weight times difference. Under the null each is symmetric around 0; the mean's own parts
            around it would not be where weights differ.
    """
    if len(parts) < 2:
        return math.nan
    if len(parts) <= _EXACT:
        signs = np.array(list(product((1.0, -1.0), repeat=len(parts))))
    else:
        signs = np.random.default_rng(_SEED).choice((1.0, -1.0), size=(_RESAMPLES, len(parts)))
        signs[0] = 1.0  # the data are one of the patterns, so that p is never 0
    means = np.abs(signs @ parts)
    return float((means >= abs(parts.sum()) - 1e-12).mean())


def _percentiles(parts: Floats) -> Interval:
    """Return the percentile bootstrap over clusters."""
    if len(parts) < 2:
        return math.nan, math.nan
    random = np.random.default_rng(_SEED)
    means = parts[random.integers(0, len(parts), size=(_RESAMPLES, len(parts)))].mean(axis=1)
    tail = (1 - intervals.CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
