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
