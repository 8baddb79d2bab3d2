"""Rank correlations over questions: Spearman's, its interval, a permutation test, and differences of two of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Interval = tuple[float, float]

LEAST = 8
"""Values that an interval needs."""
_DRAWS = 1999


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation.

    Attributes:
        value: NaN where one side is constant.
        interval: 95%, Fisher's z with Bonett and Wright's error (Psychometrika 65, 2000); NaN with fewer than `LEAST`.
            A perfect correlation has no error: its interval is that of half a swap of two neighbors less, up to 1.
        p: two-sided, by permutation.
        n: number of values.
    """

    value: float
    interval: Interval
    p: float
    n: int


def spearman(
    one: Sequence[float] | Floats, other: Sequence[float] | Floats, seed: int = 0
) -> RankCorrelation:
    """Return the rank correlation of two measures of the same units.

    Example:
        >>> found = spearman([1, 2, 3, 4, 5, 6, 7, 8], [1, 3, 2, 4, 6, 5, 7, 8])
        >>> round(found.value, 3), found.n
        (0.952, 8)
    """
    a, b = (_ranks(np.asarray(side, dtype=float)) for side in (one, other))
    return _tested(a, b, seed)


def advantage(
    one: Sequence[float] | Floats,
    other: Sequence[float] | Floats,
    outcome: Sequence[float] | Floats,
    seed: int = 0,
) -> tuple[float, Interval]:
    """Return how much larger one predictor's rank correlation is than another's, with a 95% bootstrap over units.

    Args:
        one: a predictor.
        other: another one, of the same units.
        outcome: what came.
        seed: of the resamples.

    Returns:
        (difference, interval); NaN where a correlation does not exist.
    """
    values = [np.asarray(side, dtype=float) for side in (one, other, outcome)]
    a, b, y = map(_ranks, values)
    difference = float(_correlation(a, y) - _correlation(b, y))
    n = len(y)
    if n < LEAST or math.isnan(difference):
        return difference, (math.nan, math.nan)
    drawn = np.random.default_rng(seed).integers(0, n, size=(_DRAWS, n))
    a, b, y = (_ranks(side[drawn]) for side in values)
    apart = _correlation(a, y) - _correlation(b, y)
    low, high = np.nanquantile(apart, [0.025, 0.975])
    return difference, (float(low), float(high))


def partial(one: Floats, outcome: Floats, given: Sequence[Floats], seed: int = 0) -> RankCorrelation:
    """Return the rank correlation with what the ranks of other predictors explain taken out of both sides.

    Args:
        one: the predictor.
        outcome: what came.
        given: the other predictors.
        seed: of the permutations.
    """
    columns = np.column_stack(
        [np.ones(len(outcome)), *(_ranks(np.asarray(side, dtype=float)) for side in given)]
    )
    left = []
    for side in (one, outcome):
        ranks = _ranks(np.asarray(side, dtype=float))
        residuals = ranks - columns @ np.linalg.lstsq(columns, ranks, rcond=None)[0]
        # What the others explain in full leaves rounding, which would correlate with anything.
        known = float(np.abs(residuals).max()) <= 1e-9 * len(ranks)
        left.append(np.zeros_like(residuals) if known else residuals)
    return _tested(left[0], left[1], seed, len(given))


def _tested(one: Floats, other: Floats, seed: int, given: int = 0) -> RankCorrelation:
    """Return the correlation of two sides' ranks, out of which `given` others were taken."""
    value, n = float(_correlation(one, other)), len(one)
    if math.isnan(value):
        return RankCorrelation(math.nan, (math.nan, math.nan), math.nan, n)
    order = np.random.default_rng(seed).permuted(np.tile(other, (_DRAWS, 1)), axis=1)
    reached = np.abs(_correlation(one, order)) >= abs(value) - 1e-12
    return RankCorrelation(value, _interval(value, n - given), float((1 + reached.sum()) / (1 + _DRAWS)), n)


def correlation(
    one: Sequence[float] | NDArray[np.floating], other: Sequence[float] | NDArray[np.floating]
) -> float:
    """Return Spearman's correlation alone; NaN where a side is constant."""
    return float(_correlation(_ranks(np.asarray(one, dtype=float)), _ranks(np.asarray(other, dtype=float))))


def auroc(scores: Floats, labels: NDArray[np.bool_]) -> Floats:
    """Return the area under the ROC curve along the last axis (Mann and Whitney); ties count half.

    Args:
        scores: [..., units].
        labels: [..., units], which of them are positive.

    Example:
        >>> float(auroc(np.array([1.0, 2.0, 2.0, 3.0]), np.array([False, True, False, True])))
        0.875
    """
    positive = labels.sum(-1)
    above = (_ranks(scores) * labels).sum(-1) - positive * (positive + 1) / 2
    return np.asarray(above / np.maximum(positive * (labels.shape[-1] - positive), 1))


def spearman_brown(half: float) -> float:
    """Return the reliability of a whole from the correlation of its halves: 2 r / (1 + r).

    Example:
        >>> round(spearman_brown(0.6), 2)
        0.75
    """
    return 2 * half / (1 + half) if half > -1 else math.nan


def _interval(value: float, n: int) -> Interval:
    if n < LEAST or math.isnan(value):
        return math.nan, math.nan
    # Swapping two neighbors takes 12 / (n (n² - 1)) from Spearman's correlation.
    most = 1 - 6 / (n * (n * n - 1))
    kept = min(max(value, -most), most)
    reach = float(stats.norm.ppf(0.975)) * math.sqrt((1 + kept**2 / 2) / (n - 3))
    low, high = math.tanh(math.atanh(kept) - reach), math.tanh(math.atanh(kept) + reach)
    return (-1.0 if value < -most else low), (1.0 if value > most else high)


def _ranks(values: Floats) -> Floats:
    return np.asarray(stats.rankdata(values, axis=-1))


def _correlation(one: Floats, other: Floats) -> Floats:
    """Return Pearson's correlation along the last axis; NaN where a side is constant."""
    a, b = (side - side.mean(-1, keepdims=True) for side in (one, other))
    norms = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return np.asarray((a * b).sum(-1) / np.where(norms > 1e-12, norms, np.nan))
