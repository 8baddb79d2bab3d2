"""Spearman's correlation beside scipy, its interval's coverage, and what two predictors share."""

import numpy as np
import pytest
from scipy import stats

from em_evals.stats import ranks


def test_values_and_p_are_scipy_s():
    chance = np.random.default_rng(0)
    x = chance.normal(size=25).round(1)
    y = (x + chance.normal(size=25)).round(1)
    found, right = ranks.spearman(x, y), stats.spearmanr(x, y)
    assert found.value == pytest.approx(right.statistic) == ranks.correlation(x, y)
    assert found.p == pytest.approx(right.pvalue, abs=0.01)
    constant = ranks.spearman(x, np.ones(25))
    assert np.isnan(constant.value) and np.isnan(constant.p)
    assert np.isnan(ranks.spearman(x[:5], y[:5]).interval).all()


def test_intervals_cover_the_truth():
    # Bivariate normal: Spearman's rho is 6/pi asin(r/2).
    chance = np.random.default_rng(1)
    for r in (0.0, 0.5, 0.9):
        truth = 6 / np.pi * np.arcsin(r / 2)
        x = chance.normal(size=(300, 30))
        y = r * x + np.sqrt(1 - r * r) * chance.normal(size=(300, 30))
        values = ranks._correlation(ranks._ranks(x), ranks._ranks(y))
        ends = np.array([ranks._interval(value, 30) for value in values])
        covered = ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).sum()
        assert 0.92 <= covered / 300 <= 0.99, (r, covered)


def test_an_advantage_and_a_partial_correlation_tell_predictors_apart():
    chance = np.random.default_rng(2)
    cause = chance.normal(size=60)
    outcome = cause + 0.5 * chance.normal(size=60)
    proxy, noise = cause + 0.8 * chance.normal(size=60), chance.normal(size=60)
    value, (low, _) = ranks.advantage(cause, noise, outcome)
    assert value > 0.4 and low > 0.2
    same, (low, high) = ranks.advantage(cause, cause, outcome)
    assert same == low == high == 0
    assert ranks.partial(cause, outcome, [proxy]).p < 0.01
    assert abs(ranks.partial(proxy, outcome, [cause]).value) < 0.3
