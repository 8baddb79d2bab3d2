"""Differences over clusters, against scipy and a count by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from em_evals.stats import intervals
from em_evals.stats.cluster_contrast import ClusterContrast


def test_few_clusters_get_students_t_and_an_exact_p_value():
    first = {"a": (5, 10), "b": (4, 10), "c": (2, 10), "d": (7, 10)}
    second = {"a": (3, 10), "b": (3, 10), "c": (1, 10), "d": (7, 10), "e": (9, 10)}
    found = ClusterContrast.of(first, second)
    differences = [-0.2, -0.1, -0.1, 0.0]
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert found.clusters == 4 and found.estimate == pytest.approx(-0.1)
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert found.p_value == 4 / 16, "signs of a, b and c all alike; d has none"
    exact = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert found.p_value == pytest.approx(exact.pvalue)


def test_unequal_draws_are_weighted_by_their_information():
    found = ClusterContrast.of({"a": (10, 100), "b": (1, 2)}, {"a": (20, 100), "b": (0, 2)})
    weights = np.array([50.0, 1.0]) / 51
    assert found.estimate == pytest.approx(weights @ [0.1, -0.5])
    assert found.rates[1] - found.rates[0] == pytest.approx(found.estimate)


def test_nothing_in_both_arms_is_no_proof_of_no_difference():
    none = {str(i): (0, 40) for i in range(8)}
    assert ClusterContrast.of(none, none).interval == intervals.difference((0, 320), (0, 320))


def test_without_common_clusters_there_is_no_difference():
    found = ClusterContrast.of({"a": (1, 2)}, {"b": (1, 2)})
    assert found.clusters == 0 and math.isnan(found.estimate)


@pytest.mark.simulation
def test_eight_clusters_are_covered_where_the_percentile_bootstrap_is_not():
    chance, covered = np.random.default_rng(2), {"interval": 0, "bootstrap": 0}
    for _ in range(150):
        own = np.clip(0.3 + chance.normal(0, 0.15, size=(2, 8)), 0, 1)
        arms = [{str(i): (int(chance.binomial(40, p)), 40) for i, p in enumerate(arm)} for arm in own]
        found = ClusterContrast.of(*arms)
        for name in covered:
            low, high = getattr(found, name)
            covered[name] += low <= 0 <= high
    assert covered["interval"] >= 138 and covered["interval"] - covered["bootstrap"] >= 3


def test_one_cluster_says_nothing_of_others():
    found = ClusterContrast.of({"a": (3, 100)}, {"a": (10, 100)})
    assert found.estimate == pytest.approx(0.07) and found.clusters == 1
    assert math.isnan(found.p_value) and all(math.isnan(end) for end in found.interval)


def test_rounding_is_no_spread():
    """Three clusters that differ by 0.1 each had an interval of 1e-16."""
    first, second = {"a": (1, 10), "b": (2, 10), "c": (6, 10)}, {"a": (2, 10), "b": (3, 10), "c": (7, 10)}
    assert ClusterContrast.of(first, second).interval == intervals.difference((9, 30), (12, 30))


def test_sign_flips_are_exact_with_unequal_draws():
    """One cluster with half of the weight: 16% of nulls had p <= 0.05. By a count over all patterns of signs."""
    draws = [2000, *[200] * 10]
    chance, found, small = np.random.default_rng(3), [], 0
    for _ in range(120):
        events = [int(chance.binomial(n, 0.5 + chance.uniform(-0.4, 0.4))) for n in draws]
        first = {str(i): (n // 2, n) for i, n in enumerate(draws)}
        second = {str(i): (k, n) for i, (k, n) in enumerate(zip(events, draws, strict=True))}
        found.append(ClusterContrast.of(first, second))
        small += found[-1].p_value <= 0.05
    assert small <= 12
    parts = np.array([(k / n - 0.5) * n for k, n in zip(events, draws, strict=True)])
    exact = stats.permutation_test((parts,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert found[-1].p_value == pytest.approx(exact.pvalue)
    assert sum(one.interval[0] <= 0 <= one.interval[1] for one in found) >= 112
