"""Simultaneous bands: one point is Student's interval, a band holds whole curves."""

import numpy as np
import pytest

from em_evals.stats import bands, intervals


def test_one_point_is_student_s_interval():
    values = np.random.default_rng(0).normal(size=(20, 1))
    _, low, high = bands.simultaneous(values)
    assert (low[0], high[0]) == pytest.approx(intervals.mean(values[:, 0]), abs=0.02)


def test_points_that_move_together_cost_nothing_and_independent_ones_do():
    chance = np.random.default_rng(1)
    level = chance.normal(size=(20, 1))
    together = bands.simultaneous(level * np.ones((1, 12)))
    apart = bands.simultaneous(chance.normal(size=(20, 12)))
    reach = [(high - low).mean() for _, low, high in (together, apart)]
    plain = np.subtract(*intervals.mean(level[:, 0])[::-1])
    assert reach[0] == pytest.approx(plain, rel=0.05) and reach[1] > 1.25 * plain


def test_points_without_spread_and_few_units():
    mean, low, high = bands.simultaneous(np.array([[0.0, 1.0], [0.0, 3.0]]))
    assert mean[0] == low[0] == high[0] == 0 and low[1] < 2 < high[1]
    assert np.isnan(bands.simultaneous(np.ones((1, 3)))[1]).all()
    assert bands.simultaneous(np.full((4, 2), 0.5))[2].tolist() == [0.5, 0.5]


@pytest.mark.simulation
@pytest.mark.full
def test_bands_hold_the_whole_curve_in_95_percent():
    chance = np.random.default_rng(2)
    truth = np.linspace(0, 1, 10)
    held = 0
    for number in range(400):
        walks = truth + np.cumsum(chance.normal(size=(20, 10)), axis=1)
        _, low, high = bands.simultaneous(walks, seed=number)
        held += bool(((low <= truth) & (truth <= high)).all())
    assert 0.92 <= held / 400 <= 0.98
