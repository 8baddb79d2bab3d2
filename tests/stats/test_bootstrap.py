"""Bootstrap-t against Student's t, scipy's resampling and simulated truths."""

import math

import numpy as np
import pytest
from scipy import stats

from em_evals.stats import bootstrap, intervals
from em_evals.stats.bootstrap import StudentizedMean


def test_symmetric_values_give_nearly_students_interval():
    values = np.random.default_rng(3).normal(size=60)
    ours, theirs = StudentizedMean.of(values).interval(0.025), intervals.mean(values)
    assert ours == pytest.approx(theirs, abs=0.1 * (theirs[1] - theirs[0]))


def test_the_ends_are_those_of_an_independent_resampling():
    """By scipy's own resampling of the same t statistic."""
    values = np.random.default_rng(4).exponential(size=25)

    def pivot(drawn, axis=-1):
        error = drawn.std(axis=axis, ddof=1) / math.sqrt(len(values))
        return (drawn.mean(axis=axis) - values.mean()) / error

    drawn = stats.bootstrap(
        (values,), pivot, n_resamples=4999, rng=np.random.default_rng(0), method="percentile"
    )
    high, low = np.quantile(drawn.bootstrap_distribution, [0.025, 0.975])
    error = stats.sem(values)
    expected = values.mean() - low * error, values.mean() - high * error
    assert StudentizedMean.of(values).interval(0.025) == pytest.approx(expected, rel=0.08)


def test_bounds_of_the_scale_are_kept():
    """S7: three questions of which one is at the end gave [-72, 193]."""
    low, high = StudentizedMean.of([100, 80, 0], (0, 100)).interval(0.025)
    assert (low, high) == (0, 100)
    assert intervals.mean([100, 80, 0])[0] < 0
    low, high = StudentizedMean.of([0.0] * 19 + [1.0], (0, 1)).interval(0.025)
    assert low >= 0 and high == 1, "one event in twenty says little of how large the mean can be"


@pytest.mark.parametrize(
    ("values", "interval"), [([], None), ([5.0], None), ([5.0, 5.0], None), ([5.0] * 20, (5, 5))]
)
def test_few_or_equal_values(values, interval):
    found = StudentizedMean.of(values).interval(0.025)
    assert found == interval if interval else all(math.isnan(end) for end in found)


def test_p_values_agree_with_the_interval_and_between_sides():
    values = np.random.default_rng(5).exponential(size=30)
    one, flipped = StudentizedMean.of(values), StudentizedMean.of(-values)
    low, high = one.interval(0.025)
    assert one.p_above(low - 1e-9) <= 0.0251 < one.p_above(low + 0.02)
    assert one.p_below(high + 1e-9) <= 0.0251 < one.p_below(high - 0.02)
    assert one.p_above(0.5) == flipped.p_below(-0.5)
    few = StudentizedMean.of([0.1, 0.4, 0.9])
    assert few.p_above(0) == pytest.approx(
        stats.ttest_1samp([0.1, 0.4, 0.9], 0, alternative="greater").pvalue
    )


def test_the_same_values_give_the_same_interval():
    values = list(np.random.default_rng(6).exponential(size=12))
    assert StudentizedMean.of(values).interval(0.025) == StudentizedMean.of(values).interval(0.025)


@pytest.mark.simulation
def test_skewed_means_are_covered_where_students_are_not(monkeypatch):
    """Grades of 20 questions of which most are near 0, as harm is: beta(0.2, 2), mean 1/11."""
    monkeypatch.setattr(bootstrap, "_RESAMPLES", 499)
    chance, truth = np.random.default_rng(7), 1 / 11
    missed = {"bootstrap": 0, "student": 0}
    for _ in range(300):
        values = chance.beta(0.2, 2, size=20)
        ends = {
            "bootstrap": StudentizedMean.of(values, (0, 1)).interval(0.025),
            "student": intervals.mean(values),
        }
        for name, (low, high) in ends.items():
            missed[name] += not low <= truth <= high
    assert missed["bootstrap"] / 300 <= 0.07 and missed["student"] / 300 >= 0.08
