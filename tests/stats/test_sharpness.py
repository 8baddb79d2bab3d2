"""Steps and drift in any unit, and curves that say nothing."""

import math

import numpy as np
import pytest

from em_evals.stats import sharpness

TIMES = np.arange(10.0, 170.0, 10.0)


@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e6])
def test_a_step_is_as_sharp_in_any_unit(unit):
    """Of a step of 1e-8 the p-value was 1: sums of squares below 1e-12 counted as equal."""
    curve = np.where(TIMES > 80, 1.0, 0.0) + 0.01 * np.sin(TIMES)
    plain, found = sharpness.test(TIMES, curve), sharpness.test(TIMES, unit * curve)
    assert found.p == plain.p <= 0.05 and found.middle == plain.middle
    assert found.noise == pytest.approx(unit * plain.noise)


@pytest.mark.parametrize(
    ("values", "clock"),
    [
        (np.r_[np.nan, np.arange(15.0)], None),
        (np.arange(16.0), np.r_[np.nan, np.arange(15.0)]),
        (np.full(16, 0.3), None),
        (np.arange(7.0), None),
    ],
)
def test_what_cannot_be_tested_is_no_step(values, clock):
    """A curve with a missing value had p = 0.002."""
    assert math.isnan(sharpness.test(TIMES[: len(values)], values, clock).p)
