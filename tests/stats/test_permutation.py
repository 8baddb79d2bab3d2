"""Permutation tests of families: exact by hand, family-wise error under noise, planted effects found."""

import numpy as np
import pytest

from em_evals.stats import permutation


def test_adjusted_p_values_are_those_of_the_step_down_by_hand():
    observed = np.array([3.0, 1.0, 2.0, np.nan])
    drawn = np.array([[0.0, 2.5, 0.0, 9], [4.0, 0.0, 0.0, 9], [0.0, 0.5, 2.2, 9], [1.0, 0.0, 1.0, 9]])
    # The largest is compared with the maxima of all (2.5, 4, 2.2, 1), then of those that are not larger.
    found = permutation.adjusted(observed[:3], drawn[:, :3])
    assert found == pytest.approx([2 / 5, 3 / 5, 3 / 5])
    nothing = permutation.adjusted(observed, np.where(np.arange(4) == 3, np.nan, drawn))
    assert nothing[:3] == pytest.approx(found) and np.isnan(nothing[3])


def test_one_column_is_the_sign_flip_test():
    from itertools import product

    values = np.array([0.4, 0.1, -0.2, 0.6, 0.3, 0.5, 0.2, -0.1])
    exact = np.mean(
        [abs(np.mean(values * signs)) >= abs(values.mean()) - 1e-9 for signs in product((-1, 1), repeat=8)]
    )
    ((p,),) = permutation.mean_shifts([values[:, None]], draws=20_000)
    assert p == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("items", [2, 3, 4, 5])
def test_no_p_value_is_below_what_so_few_pairs_can_show(items):
    """The observed signs, and all of them flipped, are 2 of 2^items patterns: rounding once made them unlike."""
    for seed in range(40):
        values = np.random.default_rng(seed).normal(1, 0.2, size=(items, 3))
        assert permutation.mean_shifts([values], seed)[0].min() > 0.7 * 2 / 2**items


@pytest.mark.simulation
def test_a_family_of_noise_is_wrong_once_in_twenty_and_planted_shifts_are_found():
    """28 conditions in two domains, correlated as scales of one direction are; with single t-tests a third is wrong."""
    chance, wrong, found = np.random.default_rng(0), 0, 0
    for seed in range(200):
        groups = []
        for items in (8, 24):
            shared = chance.standard_t(5, size=(items, 1))
            groups.append(shared + chance.normal(size=(items, 28)))
        wrong += min(p.min() for p in permutation.mean_shifts(groups, seed, draws=199)) <= 0.05
        groups[1][:, 3] += 2.0
        found += permutation.mean_shifts(groups, seed, draws=199)[1][3] <= 0.05
    assert wrong / 200 <= 0.081, "0.05, and two standard errors of 200 simulations"
    assert found / 200 >= 0.9


def test_labels_are_permuted_as_their_questions_allow():
    wanted = np.array([1, 0, 1, 0, 1, 1, 0, 0], dtype=bool)
    groups = ["a", "a", "b", "b", "c", "c", "d", "d"]
    found = permutation.labels(wanted, groups, 200)
    assert (found[:, :2].sum(1) == 1).all() and (found[:, 2:4].sum(1) == 1).all(), "within mixed questions"
    assert (found[:, 4] == found[:, 5]).all() and (found[:, 6] != found[:, 4]).all(), (
        "whole questions exchange"
    )
    assert 0.4 < found[:, 0].mean() < 0.6 and 0.4 < found[:, 4].mean() < 0.6
