"""A linear mixed model with known sampling variances: random-effects meta-regression by REML.

    y = X b + sum_k Z_k u_k + e,    u_k ~ N(0, s_k I),    e ~ N(0, diag(v)),    v known

Fits observed logits of rates: `v` is their sampling variance, the random effects are what is sampled above a draw
(family, base, training run). Tests use Satterthwaite's degrees of freedom, so that few groups give wide intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from em_evals.stats.special import p_value

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Mixed:
    """A fitted model.

    Attributes:
        estimates: b, one value per column of X.
        covariance: of the estimates, shape (columns, columns).
        variances: s_k, one per random effect.
        freedom: Satterthwaite's degrees of freedom, one per column.
    """

    estimates: Array
    covariance: Array
    variances: Array
    freedom: Array

    def interval(self, column: int, confidence: float = 0.95) -> tuple[float, float]:
        """Return the t interval of an estimate."""
        half = stats.t.ppf((1 + confidence) / 2, self.freedom[column]) * self.error(column)
        return float(self.estimates[column] - half), float(self.estimates[column] + half)

    def error(self, column: int) -> float:
        """Return the standard error of an estimate."""
        return float(np.sqrt(self.covariance[column, column]))

    def p_value(self, column: int) -> float:
        """Return the two-sided p of b = 0."""
        t = abs(self.estimates[column]) / self.error(column)
        return p_value(2 * stats.t.sf(t, self.freedom[column]))


def fit(y: Array, columns: Array, groups: Sequence[Sequence[object]], known: Array) -> Mixed:
    """Fit the model by restricted maximum likelihood.

    Args:
        y: observations, shape (n,).
        columns: X, shape (n, p); of full rank.
        groups: for each random effect the group of every observation (n names).
        known: v, the sampling variances, shape (n,).

    Raises:
        ValueError: X is not of full rank, or leaves no residual.

    Example:
        >>> x = np.column_stack([np.ones(8), np.arange(8.0)])
        >>> found = fit(2 + 3 * x[:, 1], x, ["aabbccdd"], np.full(8, 0.1))
        >>> [round(float(value), 6) for value in found.estimates]
        [2.0, 3.0]
    """
    if np.linalg.matrix_rank(columns) < columns.shape[1] or len(y) <= columns.shape[1]:
        raise ValueError("the columns are collinear, or there are no more observations than columns")
    shared = [np.equal.outer(codes, codes).astype(float) for codes in map(_codes, groups)]

    def pieces(variances: Array) -> tuple[Array, Array, Array]:
        """Return the covariance of y, (X' V^-1 X)^-1 and P, which projects X out of V^-1."""
        total: Array = np.diag(known) + np.tensordot(variances, np.array(shared), axes=1)
        inverse: Array = np.asarray(np.linalg.inv(total), dtype=float)
        spread: Array = np.asarray(np.linalg.inv(columns.T @ inverse @ columns), dtype=float)
        project: Array = inverse - inverse @ columns @ spread @ columns.T @ inverse
        return total, spread, project

    def cost(variances: Array) -> tuple[float, Array]:
        """Return minus twice the restricted log-likelihood and its gradient."""
        total, spread, project = pieces(variances)
        value = np.linalg.slogdet(total)[1] - np.linalg.slogdet(spread)[1] + y @ project @ y
        residual = project @ y
        slope = [np.sum(project * one) - residual @ one @ residual for one in shared]
        return float(value), np.array(slope)

    start = np.full(len(shared), max(float(np.var(y)) / (1 + len(shared)), 1e-3))
    found = optimize.minimize(cost, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(shared))
    variances = np.asarray(found.x, dtype=float)
    total, spread, project = pieces(variances)
    estimates = spread @ columns.T @ np.linalg.solve(total, y)
    return Mixed(estimates, spread, variances, _satterthwaite(columns, total, spread, project, shared))


def _codes(names: Sequence[object]) -> NDArray[np.int_]:
    """Return a number for each name."""
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([order[name] for name in names])


def _satterthwaite(
    columns: Array, total: Array, spread: Array, project: Array, shared: Sequence[Array]
) -> Array:
    """Return 2 Var(b)^2 / Var(Var(b)), the latter by the delta method with REML's expected information."""
    information = np.array([[np.sum((project @ a) * (project @ b).T) for b in shared] for a in shared]) / 2
    precision = np.linalg.pinv(information)
    lever = np.linalg.solve(total, columns) @ spread  # d b / d y
    slopes = np.array([np.einsum("ij,ik,kj->j", lever, one, lever) for one in shared])
    noise = np.einsum("kj,kl,lj->j", slopes, precision, slopes)
    most = len(total) - columns.shape[1]
    freedom = 2 * np.diag(spread) ** 2 / np.maximum(noise, 1e-300)
    return np.asarray(np.clip(freedom, 1, most), dtype=float)
