"""The mixed model with known sampling variances against statsmodels' REML and hand-worked cases."""

import numpy as np
import pytest

from em_evals.stats import mixed


def grouped(seed=0, groups=12, each=5):
    """Return observations with one random intercept: y, X, group names."""
    random = np.random.default_rng(seed)
    names = np.repeat(np.arange(groups), each)
    x = random.normal(size=groups * each)
    y = 1 + 0.5 * x + random.normal(size=groups)[names] + 0.3 * random.normal(size=groups * each)
    return y, np.column_stack([np.ones_like(x), x]), names


def test_variances_and_estimates_equal_statsmodels_reml():
    from statsmodels.regression.mixed_linear_model import MixedLM

    y, columns, names = grouped()
    # statsmodels estimates the residual variance; here each row has its own group, which is the same model.
    found = mixed.fit(y, columns, [names, np.arange(len(y))], np.full(len(y), 1e-9))
    reference = MixedLM(y, columns, names).fit(reml=True)
    np.testing.assert_allclose(found.estimates, reference.fe_params, atol=1e-4)
    np.testing.assert_allclose(found.variances, [reference.cov_re[0, 0], reference.scale], rtol=1e-2)
    np.testing.assert_allclose(np.sqrt(np.diag(found.covariance)), reference.bse_fe, rtol=1e-2)


def test_without_random_variance_it_is_weighted_least_squares():
    x = np.column_stack([np.ones(6), np.arange(6.0)])
    known = np.array([1.0, 2.0, 1.0, 4.0, 1.0, 2.0])
    y = 2 + 3 * x[:, 1]
    found = mixed.fit(y, x, [list("aabbcc")], known)
    weights = np.diag(1 / known)
    np.testing.assert_allclose(found.variances, 0, atol=1e-6)
    np.testing.assert_allclose(found.covariance, np.linalg.inv(x.T @ weights @ x), rtol=1e-5)


def test_few_groups_give_few_degrees_of_freedom():
    """A predictor that is constant in groups has about groups - 2 degrees of freedom, not rows - 2."""
    random = np.random.default_rng(1)
    names = np.repeat(np.arange(8), 20)
    x = np.arange(8.0)[names]
    y = random.normal(size=8)[names] + 0.1 * random.normal(size=160)
    found = mixed.fit(y, np.column_stack([np.ones(160), x]), [names], np.full(160, 0.01))
    assert 5.5 < found.freedom[1] < 6.5


def test_collinear_columns_are_refused():
    with pytest.raises(ValueError, match="collinear"):
        mixed.fit(np.arange(4.0), np.ones((4, 2)), [list("abcd")], np.ones(4))
