"""Means of equal values: limits by Clopper and Pearson, and p-values by counting signs."""

import math

import numpy as np
import pytest
from scipy import stats

from em_evals.stats import intervals, ties
from em_evals.stats.bootstrap import StudentizedMean


@pytest.mark.parametrize("count", [2, 10, 40])
def test_at_an_end_of_the_scale_the_limit_is_clopper_and_pearsons(count):
    exact = stats.binomtest(0, count).proportion_ci(0.95, "exact")
    assert ties.interval(0.0, count, 0.025, (0, 1)) == pytest.approx((exact.low, exact.high))
    low, high = StudentizedMean.of([100.0] * count, (0, 100)).interval(0.025)
    assert (100 - high, 100 - low) == pytest.approx((0, 100 * exact.high)), "[100, 100] before"


def test_within_the_scale_both_ends_move():
    low, high = StudentizedMean.of([60.0] * 10, (0, 100)).interval(0.025)
    assert low == pytest.approx(60 * 0.025**0.1) and high == pytest.approx(100 - 40 * 0.025**0.1)


def test_without_a_scale_few_equal_values_have_no_interval():
    assert math.isnan(intervals.mean([5.0] * 5)[0]) and intervals.mean([5.0] * 6) == (5, 5)
    assert StudentizedMean.of([5.0] * 6).interval(0.025) == (5, 5)


def test_p_values_are_sign_flips():
    values = np.full(7, 0.3)
    exact = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="greater"
    )
    found = StudentizedMean.of(values)
    assert found.p_above(0) == pytest.approx(exact.pvalue) == ties.p_value(7)
    assert found.p_below(0) == 1 == found.p_above(0.3) and found.p_below(1) == ties.p_value(7)


def test_rounding_is_no_spread():
    assert ties.equal(np.array([0.3 - 0.2, 0.2 - 0.1])) and ties.equal(np.zeros(3))
    assert not ties.equal(np.array([0.1, 0.1 + 1e-9]))
