"""Cosines of mean vectors that were measured with noise, corrected for it.

A direction is a mean over questions, and other questions would give another one. Noise makes every cosine smaller
(attenuation), and noise that two directions share, because they read the same texts, makes their cosine larger. Both
disappear where only products of *different* questions are used: for folds i != j of the questions,

    <a, b> = sum w_i w_j a_i·b_j / sum w_i w_j          (unbiased, i != j only)
    corrected cosine = <a, b> / sqrt(<a, a> <b, b>)     (Spearman's correction for attenuation, 1904)

Numbers in, numbers out; files and models are left to interp/.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from em_evals.stats.intervals import CONFIDENCE

Floats = NDArray[np.floating]
Interval = tuple[float, float]

LEAST_FOLDS = 6
"""Fewer folds give no interval: their differences are too few."""
_RESAMPLES = 1000
_LOST = 0.025
"""Share of resamples in which a norm may be lost in noise; beyond it the corrected cosine is not estimable."""


def reliability(held_out_cosine: float) -> float:
    """Return the cosine of a half's mean vector with the true one: sqrt of its cosine with the other half's.

    Pure noise gives about 0 (a negative cosine counts as 0), no noise 1.

    Example:
        >>> reliability(0.81), reliability(-0.02)
        (0.9, 0.0)
    """
    return math.sqrt(max(held_out_cosine, 0.0))


@dataclass(frozen=True, eq=False)
class Folds:
    """One direction, measured on each fold of the questions.

    Attributes:
        vectors: [folds, layers, width]; the difference of means within each fold.
        weights: [folds], how much each fold counts (its number of texts); 0 where a fold has no vector.
    """

    vectors: Floats
    weights: Floats

    @property
    def count(self) -> int:
        """Number of folds that have a vector."""
        return int((self.weights > 0).sum())


Products = NDArray[np.float64]
"""[layers, folds, folds]: w_i w_j a_i·b_j."""


def products(one: Folds, other: Folds) -> Products:
    """Return the weighted products of all pairs of folds, layer by layer."""
    weighted = [side.vectors * np.asarray(side.weights)[:, None, None] for side in (one, other)]
    return np.stack(
        [
            np.asarray(weighted[0][:, layer], dtype=float) @ np.asarray(weighted[1][:, layer], dtype=float).T
            for layer in range(one.vectors.shape[1])
        ]
    )


def squared_norm(one: Folds) -> NDArray[np.float64]:
    """Return [layers], the unbiased estimate of the true vector's squared norm; negative if all is noise."""
    times = np.ones((1, len(one.weights)))
    return np.asarray((_crossed(products(one, one), times) / _pairs(one, one, times)[:, None])[0])


@dataclass(frozen=True, eq=False)
class Pair:
    """Two directions on folds of the same questions.

    Args:
        one: a direction.
        other: another one of the same base.
        scale: [layers], squared norms that make layers comparable (the base's mean activation norm, squared).
    """

    one: Folds
    other: Folds
    scale: Floats

    def by_layer(self) -> NDArray[np.float64]:
        """Return [layers], the corrected cosines; NaN where a squared norm is not above 0."""
        times = np.ones((1, len(self.one.weights)))
        own, others, both = (value[0] for value in self._parts(times))
        return np.asarray(_ratio(both, own, others))

    def over_layers(self, times: Floats) -> NDArray[np.float64]:
        """Return [resamples], the corrected cosine of the two over all layers at once.

        Args:
            times: [resamples, folds], how often each fold was drawn.
        """
        own, others, both = ((value / self.scale).sum(1) for value in self._parts(times))
        return np.asarray(_ratio(both, own, others))

    def _parts(self, times: Floats) -> tuple[NDArray[np.float64], ...]:
        sides = ((self.one, self.one), (self.other, self.other), (self.one, self.other))
        return tuple(_crossed(products(*pair), times) / _pairs(*pair, times)[:, None] for pair in sides)


@dataclass(frozen=True)
class Estimate:
    """A value with its bootstrap interval over folds of questions; NaN where it is not estimable."""

    value: float
    interval: Interval
    folds: int


def bootstrap(statistic: Callable[[Floats], NDArray[np.float64]], weights: Floats, seed: int = 0) -> Estimate:
    """Return a statistic of folds with its interval; folds are drawn with replacement.

    A fold that some directions have not is drawn all the same, and is empty for these. Directions of the same questions
    are so drawn together. Those of other questions share no noise, and that their folds are drawn together adds none.

    The bootstrap's spread is widened to Student's quantile and by sqrt(k / (k - 1)): with 16 folds percentiles alone
    are too narrow.

    Args:
        statistic: takes [resamples, folds], how often each fold was drawn, and returns [resamples].
        weights: [folds], 0 for folds that nothing has; or [directions, folds], those of each.
        seed: of the draws.
    """
    from scipy import stats

    filled = np.atleast_2d(np.asarray(weights) > 0)
    there = np.flatnonzero(filled.any(0))
    count = int(filled.sum(1).min())  # the direction with the fewest folds decides how wide the interval is
    value = float(statistic(np.ones((1, filled.shape[1])))[0])
    if count < LEAST_FOLDS or math.isnan(value):
        return Estimate(math.nan, (math.nan, math.nan), count)
    times = np.zeros((_RESAMPLES, filled.shape[1]))
    size = len(there)
    times[:, there] = np.random.default_rng(seed).multinomial(size, [1 / size] * size, size=_RESAMPLES)
    drawn = statistic(times)
    if np.isnan(drawn).mean() > _LOST:
        return Estimate(math.nan, (math.nan, math.nan), count)
    spread = float(np.nanstd(drawn)) * math.sqrt(count / (count - 1))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * spread
    return Estimate(value, (value - reach, value + reach), count)


def _crossed(found: Products, times: Floats) -> NDArray[np.float64]:
    """Return [resamples, layers]: the sum of products of different folds, each as often as both were drawn."""
    apart = found * (1 - np.eye(found.shape[1]))
    drawn = (times[:, :, None] * times[:, None, :]).reshape(len(times), -1)
    return np.asarray(drawn @ apart.reshape(len(apart), -1).T)


def _pairs(one: Folds, other: Folds, times: Floats) -> NDArray[np.float64]:
    """Return [resamples], the sum of the weights of all pairs of different folds."""
    a, b = times * one.weights, times * other.weights
    total = a.sum(1) * b.sum(1) - (a * b).sum(1)
    return np.where(total > 0, total, np.nan)


def _ratio(both: Floats, own: Floats, others: Floats) -> NDArray[np.float64]:
    there = (own > 0) & (others > 0)
    return np.where(there, both / np.sqrt(np.where(there, own * others, 1.0)), np.nan)
