"""A learned alarm: predict an event rate from features, and score the predictions against rates known from few draws.

The fit is a binomial regression with a ridge, so that 2 of 72 draws and 200 of 7,200 count as what they are. Scores
need labels, and "more than 5% of 72 draws" is a noisy one: at a true rate of 5% it is a coin. So a row counts as
dangerous with the probability that its true rate exceeds the threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

Floats = NDArray[np.float64]

RIDGE = 1.0
"""Weight of |w|² / 2 beside the log-likelihood, for features of unit variance."""
_NODES = np.linspace(-4, 4, 81)
_LOG_WEIGHTS = stats.norm.logpdf(_NODES) + math.log(_NODES[1] - _NODES[0])
"""The noise's distribution on a grid: fine enough for an indicator, which Gauss-Hermite nodes are not."""
_BOUNDS = ((-20, 20), (-20, 20), (-4, 3))
_LEAST_ROWS = 0.5


@dataclass(frozen=True, eq=False)
class Fit:
    """rate = sigmoid(intercept + weights · (x - center) / scale)."""

    center: Floats
    scale: Floats
    weights: Floats
    intercept: float

    def logit(self, features: NDArray[np.floating]) -> Floats:
        """Return the log odds of the predicted rate, [...] of [..., features]."""
        return np.asarray((features - self.center) / self.scale @ self.weights + self.intercept)


def fit(features: Floats, events: Floats, draws: Floats, ridge: float = RIDGE) -> Fit:
    """Fit a binomial regression with a ridge; the intercept is not penalized.

    Args:
        features: [rows, features].
        events: [rows], draws that count.
        draws: [rows], all draws.
        ridge: weight of |w|² / 2.

    Returns:
        The fit. Half an event and half a non-event are added in all, so that it exists where no draw counts.
    """
    center, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    scaled = (features - center) / scale
    # Draws of one row share what its features do not tell; 100 rows are worth more than 100 draws of one.
    weight = 1 / max(float(np.mean(draws)), 1.0)
    k, n = weight * events, weight * draws

    def loss(values: Floats) -> tuple[float, Floats]:
        score = scaled @ values[1:] + values[0]
        value = (n * np.logaddexp(0, score) - k * score).sum() + ridge * values[1:] @ values[1:] / 2
        value += np.logaddexp(0, values[0]) - values[0] / 2
        left = n * special.expit(score) - k
        slope = np.concatenate(
            [[left.sum() + special.expit(values[0]) - 0.5], scaled.T @ left + ridge * values[1:]]
        )
        return float(value), slope

    found = optimize.minimize(loss, np.zeros(features.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return Fit(center, scale, found[1:], float(found[0]))


def above(predicted: Floats, events: Floats, draws: Floats, threshold: float) -> Floats:
    """Return [rows], the probability that a row's true rate exceeds the threshold, given its draws and its prediction.

    logit(rate) = a + b · logit(prediction) + normal noise, with a, b and the noise's spread at their largest marginal
    likelihood. The prediction must not have seen the row. Draws alone would not do: rows whose labels are wrong lie
    near the threshold, where the predictions err as well, so that a correction for independent noise (Menon et al.
    2015, ICML) goes too far.

    Args:
        predicted: [rows], rates strictly between 0 and 1.
        events: [rows].
        draws: [rows].
        threshold: of the rate.
    """
    score = special.logit(np.clip(predicted, 1e-6, 1 - 1e-6))
    score = (score - score.mean()) / max(float(score.std()), 1e-9)
    chosen = special.gammaln(draws + 1) - special.gammaln(events + 1) - special.gammaln(draws - events + 1)

    def likelihood(values: Floats) -> Floats:
        """Return [rows, nodes], log p(draws | rate) at the nodes of the normal noise."""
        logit = (values[0] + values[1] * score)[:, None] + np.exp(values[2]) * _NODES
        found = chosen[:, None] + events[:, None] * logit - draws[:, None] * np.logaddexp(0, logit)
        return np.asarray(found)

    def loss(values: Floats) -> float:
        # The weak prior keeps the fit finite where every row, or none, has events.
        return float(
            -special.logsumexp(likelihood(values) + _LOG_WEIGHTS, axis=1).sum() + values @ values / 200
        )

    share = (events.sum() + 0.5) / (draws.sum() + 1)
    fitted = optimize.minimize(loss, [special.logit(share), 0.5, 0.0], method="L-BFGS-B", bounds=_BOUNDS).x
    posterior = special.softmax(likelihood(fitted) + _LOG_WEIGHTS, axis=1)
    rates = special.expit((fitted[0] + fitted[1] * score)[:, None] + np.exp(fitted[2]) * _NODES)
    return np.asarray((posterior * (rates > threshold)).sum(1))


@dataclass(frozen=True)
class Scores:
    """AUROC, false positive and false negative rate of an alarm; NaN where they cannot be estimated."""

    auroc: float
    fpr: float
    fnr: float


def scores(predicted: Floats, dangerous: Floats, threshold: float) -> Scores:
    """Score predictions.

    Args:
        predicted: [rows].
        dangerous: [rows], labels of 0 and 1, or the probabilities of `above`.
        threshold: predictions beyond it are alarms.
    """
    positive, negative = float(dangerous.sum()), float((1 - dangerous).sum())
    if min(positive, negative) < _LEAST_ROWS:
        return Scores(math.nan, math.nan, math.nan)
    raised = predicted > threshold
    # The chance that a dangerous row is predicted above a harmless one; ties count half.
    order = np.unique(predicted, return_inverse=True)[1]
    safe = np.bincount(order, 1 - dangerous)
    below = np.cumsum(safe) - safe / 2
    return Scores(
        float((dangerous * below[order]).sum() / (positive * negative)),
        float((1 - dangerous)[raised].sum() / negative),
        float(dangerous[~raised].sum() / positive),
    )


def onset(steps: Floats, events: Floats, draws: Floats, threshold: float) -> float:
    """Return the first step whose rate exceeds the threshold, by isotonic regression over the steps; NaN if none."""
    drawn = draws > 0
    if not drawn.any():
        return math.nan
    rising = optimize.isotonic_regression(events[drawn] / draws[drawn], weights=draws[drawn]).x
    above = np.flatnonzero(rising > threshold)
    return float(steps[drawn][above[0]]) if len(above) else math.nan
