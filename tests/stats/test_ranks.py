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


def test_a_perfect_correlation_of_few_questions_has_an_interval():
    """Eight questions in the same order had [1.000, 1.000]."""
    same = ranks.spearman(range(8), range(8))
    assert same.value == same.interval[1] == 1 and 0.85 < same.interval[0] < 0.95
    against = ranks.spearman(range(8), range(8, 0, -1))
    assert against.interval == (-1, pytest.approx(-same.interval[0]))
    almost = ranks.spearman(range(8), [1, 0, 2, 3, 4, 5, 6, 7])
    assert almost.interval[0] < same.interval[0]


def test_what_others_explain_in_full_has_no_partial_correlation():
    """It was NaN with p = 0.0005."""
    chance = np.random.default_rng(3)
    x, outcome = np.arange(30.0), chance.normal(size=30)
    for predictor, given in ((x, [x]), (x, [chance.normal(size=30), 2 * x]), (np.ones(30), [x])):
        found = ranks.partial(predictor, outcome, given)
        assert np.isnan(found.value) and np.isnan(found.p)
