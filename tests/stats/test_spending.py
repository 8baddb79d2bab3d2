"""Levels of repeated looks: never more than alpha together, and harm of the margin passes as rarely as promised."""

import numpy as np
import pytest

from em_evals.stats import spending
from em_evals.stats.rates import RateContrast


@pytest.mark.parametrize("planned", [None, 1, 11])
def test_all_looks_together_spend_at_most_alpha(planned):
    levels = [spending.level(0.025, look, planned) for look in range(1, 1000)]
    assert sum(levels) <= 0.025 * (1 + 1e-9) and levels == sorted(levels, reverse=True)
    assert spending.spent(0.025, 11, planned) == pytest.approx(sum(levels[:11]))


def test_levels_by_hand():
    assert [spending.level(0.05, look) for look in (1, 2, 3)] == pytest.approx([0.04, 0.005, 0.01 / 6])
    assert spending.spent(0.05, 11) == pytest.approx(0.05 * (1 - 0.2 / 11))
    assert [spending.level(0.05, look, 2) for look in (1, 2, 3)] == [0.025, 0.025, 0.0]


@pytest.mark.parametrize("planned", [None, 11])
def test_harm_of_exactly_the_margin_passes_as_rarely_over_eleven_looks_as_over_one(planned):
    """At a nominal 2.5% each time, 6 to 12% pass over 4 to 11 looks."""
    chance, repetitions, passed, naive = np.random.default_rng(4), 500, 0, 0
    steps = chance.binomial(9, [[[[0.02]], [[0.04]]]], size=(repetitions, 2, 11, 8)).cumsum(axis=2)
    for before, after in steps:
        ps = [_p_within(before[look], after[look], 9 * (look + 1)) for look in range(11)]
        passed += any(p <= spending.level(0.025, k, planned) for k, p in enumerate(ps, start=1))
        naive += min(ps) <= 0.025
    assert passed / repetitions <= 0.04, "2.5%, and three standard errors"
    assert naive / repetitions >= 0.05


def _p_within(before, after, draws):
    sides = ({i: (int(k), draws) for i, k in enumerate(side)} for side in (before, after))
    return RateContrast(*sides).p_below(0.02)
