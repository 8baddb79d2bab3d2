"""Standard errors of weighted means beside the usual ones, a simulation and statsmodels' HC2."""

import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from em_evals.stats import weighted_mean


def test_equal_weights_give_the_usual_error():
    values = np.array([0.1, 0.4, -0.2, 0.3])
    assert weighted_mean.error(values, np.full(4, 0.25)) == pytest.approx(stats.sem(values))
    assert weighted_mean.freedom(np.full(4, 0.25)) == pytest.approx(3)


def test_unequal_weights_are_weighted_least_squares_with_hc2():
    values, weights = np.random.default_rng(0).normal(size=6), np.array([0.4, 0.2, 0.2, 0.1, 0.05, 0.05])
    fitted = sm.WLS(values, np.ones(6), weights=weights).fit(cov_type="HC2")
    assert weighted_mean.error(values, weights) == pytest.approx(fitted.bse[0])


def test_the_degrees_of_freedom_are_those_of_the_matrix():
    weights = np.array([0.4, 0.2, 0.2, 0.1, 0.05, 0.05])
    residual = np.eye(6) - weights
    parts = np.diag(weights**2 / (1 - weights)) @ residual @ residual.T
    assert weighted_mean.freedom(weights) == pytest.approx(np.trace(parts) ** 2 / np.trace(parts @ parts))


def test_a_heavy_cluster_leaves_few_degrees_of_freedom():
    weights = np.array([0.5, *[0.05] * 10])
    values = np.random.default_rng(1).normal(size=(4000, 11))
    squares = np.array([weighted_mean.error(row, weights) ** 2 for row in values])
    assert weighted_mean.freedom(weights) == pytest.approx(2 * squares.mean() ** 2 / squares.var(), rel=0.1)
    reach = stats.t.ppf(0.975, weighted_mean.freedom(weights)) * np.sqrt(squares)
    usual = 1.96 * math.sqrt(11 / 10) * np.sqrt((values - (values @ weights)[:, None]) ** 2 @ weights**2)
    assert (np.abs(values @ weights) <= reach).mean() >= 0.95
    assert (np.abs(values @ weights) <= usual).mean() < 0.85
