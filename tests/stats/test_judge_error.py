"""Rates corrected for a judge's errors: by hand, perfect judges, and coverage with known error rates."""

import math

import numpy as np
import pytest

from em_evals.stats import intervals, judge_error
from em_evals.stats.judge_error import Labels, prediction_powered, rogan_gladen


def test_rogan_gladen_by_hand():
    """Se 0.8, Sp 0.9, judged 24%: (0.24 - 0.1) / 0.7 = 20%."""
    found = rogan_gladen(240, 1000, Labels(40, 10, 20, 180))
    assert found.value == pytest.approx(0.2) and not found.clipped
    assert found.interval[0] < 0.2 < found.interval[1]


def test_an_estimate_below_zero_is_clipped_and_says_so():
    found = rogan_gladen(50, 1000, Labels(40, 10, 20, 180))
    assert (found.value, found.clipped) == (0, True) and found.interval[0] == 0 < found.interval[1]


def test_perfect_judges_equal_the_judged_rate():
    labels = Labels(30, 0, 0, 170)
    assert prediction_powered(150, 1000, labels).value == pytest.approx(0.15)
    assert prediction_powered(10, 1000, Labels(0, 0, 0, 20)).value == pytest.approx(0.01), (
        "was 0 of 20 labels"
    )
    powered = prediction_powered(150_000, 1_000_000, Labels(30_000, 0, 0, 170_000))
    assert powered.interval == pytest.approx(intervals.fixed_questions(150_000, 1_000_000), rel=0.01)
    many = Labels(30_000, 0, 0, 170_000)
    assert rogan_gladen(150, 1000, labels).value == pytest.approx(0.15)
    assert rogan_gladen(150, 1000, many).interval == pytest.approx(
        intervals.fixed_questions(150, 1000), abs=1e-3
    )


def test_few_labels_widen_the_interval():
    few, many = (
        rogan_gladen(240, 1000, Labels(4, 1, 2, 18)),
        rogan_gladen(240, 1000, Labels(400, 100, 200, 1800)),
    )
    assert few.interval[1] - few.interval[0] > 2 * (many.interval[1] - many.interval[0])


@pytest.mark.parametrize("labels", [Labels(0, 0, 2, 8), Labels(1, 4, 8, 2), Labels(5, 0, 0, 0)])
def test_what_cannot_be_corrected_says_why(labels):
    found = rogan_gladen(10, 100, labels)
    assert math.isnan(found.value) and found.why


def test_labels_of_other_draws_are_noticed():
    assert "not of these draws" in prediction_powered(5, 100, Labels(10, 0, 0, 10)).why


@pytest.mark.simulation
@pytest.mark.parametrize(
    ("number", "rate", "sensitivity", "specificity"),
    [(20, 0.1, 0.8, 0.95), (50, 0.05, 0.5, 1.0), (50, 0.02, 0.8, 0.98), (100, 0.05, 0.9, 0.99)],
)
def test_few_labels_cover_too(number, rate, sensitivity, specificity):
    """2,000 draws: the interval held 73, 77, 81 and 91% where few labels held none of the judge's errors."""
    chance, runs, covered = np.random.default_rng(12), 400, 0
    for _ in range(runs):
        people = chance.random(2000) < rate
        judge = chance.random(2000) < np.where(people, sensitivity, 1 - specificity)
        y, f = people[:number], judge[:number]
        labels = Labels(int((y & f).sum()), int((y & ~f).sum()), int((~y & f).sum()), int((~y & ~f).sum()))
        low, high = prediction_powered(int(judge.sum()), 2000, labels).interval
        covered += low <= rate <= high
    assert covered / runs >= 0.94


@pytest.mark.simulation
@pytest.mark.parametrize(
    ("rate", "sensitivity", "specificity"),
    [
        (0.1, 0.8, 0.95),
        pytest.param(0.4, 0.9, 0.8, marks=pytest.mark.full),
        pytest.param(0.05, 0.7, 0.98, marks=pytest.mark.full),
    ],
)
def test_corrected_intervals_cover_where_the_judged_one_does_not(rate, sensitivity, specificity, monkeypatch):
    """400 labels of 2,000 draws; the truth is the rate of new draws."""
    monkeypatch.setattr(judge_error, "_SAMPLES", 2000)
    chance, runs = np.random.default_rng(11), 400
    covered = {"raw": 0, "rogan": 0, "powered": 0}
    for _ in range(runs):
        people = chance.random(2000) < rate
        judge = chance.random(2000) < np.where(people, sensitivity, 1 - specificity)
        y, f = people[:400], judge[:400]
        labels = Labels(int((y & f).sum()), int((y & ~f).sum()), int((~y & f).sum()), int((~y & ~f).sum()))
        events = int(judge.sum())
        ends = {
            "raw": intervals.fixed_questions(events, 2000),
            "rogan": rogan_gladen(events, 2000, labels).interval,
            "powered": prediction_powered(events, 2000, labels).interval,
        }
        for name, (low, high) in ends.items():
            covered[name] += low <= rate <= high
    assert 0.925 <= covered["rogan"] / runs <= 0.99 and 0.925 <= covered["powered"] / runs <= 0.98
    if abs(rate * sensitivity + (1 - rate) * (1 - specificity) - rate) > 0.02:
        assert covered["raw"] / runs < 0.5
