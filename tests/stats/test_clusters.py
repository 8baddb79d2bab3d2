"""The interval of a rate over other questions: the beta-binomial posterior, and what it covers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from em_evals.stats.clusters import Clusters, Interval, rate_intervals
from em_evals.stats.intervals import random_questions, random_questions_each


def rate_interval(clusters: Clusters, confidence: float) -> Interval:
    return rate_intervals([clusters], confidence)[0]


def reference(clusters: list[tuple[int, int]], levels: tuple[float, ...]) -> list[float]:
    """Quantiles of the posterior by brute force: scipy's beta-binomial on a fine grid of both parameters."""
    mu = np.sin((np.arange(1500) + 0.5) / 1500 * math.pi / 2) ** 2
    rho = (np.arange(300) + 0.5) / 300
    spread = (1 - rho) / rho
    logs = stats.beta.logpdf(rho[:, None], 1, 3 - 4 * mu * (1 - mu))
    for events, draws in clusters:
        logs += stats.betabinom.logpmf(events, draws, spread[:, None] * mu, spread[:, None] * (1 - mu))
    mass = np.exp(logs - logs.max()).sum(axis=0)  # the grid of mu is even in the angle, as Jeffreys' prior is
    return [float(mu[np.searchsorted(np.cumsum(mass) / mass.sum(), level)]) for level in levels]


@pytest.mark.parametrize(
    "clusters",
    [
        pytest.param([(2, 10), (0, 10), (7, 12)], marks=pytest.mark.full),
        pytest.param([(1, 100)] + [(0, 100)] * 7, marks=pytest.mark.full),
        pytest.param([(0, 20), (20, 20), (3, 20), (9, 20)], marks=pytest.mark.full),
        [(40, 100), (55, 90), (35, 80), (61, 100), (20, 50)],
    ],
)
def test_the_interval_is_the_posteriors(clusters: list[tuple[int, int]]) -> None:
    assert rate_interval(clusters, 0.95) == pytest.approx(reference(clusters, (0.025, 0.975)), abs=3e-3)
    assert rate_interval(clusters, 0.8) == pytest.approx(reference(clusters, (0.1, 0.9)), abs=3e-3)


def test_no_event_is_a_small_rate_and_the_mirror_image_of_all_events() -> None:
    low, high = rate_interval([(0, 100)] * 24, 0.95)
    assert low == 0 and 0.005 < high < 0.02
    assert rate_interval([(100, 100)] * 24, 0.95) == pytest.approx((1 - high, 1), abs=1e-6)
    assert random_questions([(0, 0), *[(0, 100)] * 24]) == random_questions([(0, 100)] * 24)


@pytest.mark.parametrize("questions", [8, 24, 33])
def test_more_events_never_lower_the_upper_end(questions: int) -> None:
    others = [(0, 100)] * (questions - 1)
    ends = [rate_interval([(events, 100), *others], 0.95)[1] for events in range(0, 101, 5)]
    assert ends == sorted(ends)
    even = [rate_interval([(events, 100)] * questions, 0.95)[1] for events in range(0, 101, 5)]
    assert even == sorted(even)


@pytest.mark.parametrize("draws", [10, pytest.param(100, marks=pytest.mark.full), 400])
@pytest.mark.parametrize("questions", [3, pytest.param(8, marks=pytest.mark.full), 24])
def test_events_that_fall_one_a_question_never_lower_the_upper_end(questions: int, draws: int) -> None:
    """The posterior alone has 2.70% for 3 events of 24 x 100 draws and 0.99% for 10, each on another question."""
    rounds = [
        [(events // questions + (place < events % questions), draws) for place in range(questions)]
        for events in range(2 * questions + 1)
    ]
    lows, highs = zip(*(rate_interval(clusters, 0.95) for clusters in rounds), strict=True)
    assert list(highs) == sorted(highs) and list(lows) == sorted(lows)
    mirrored = [rate_interval([(n - k, n) for k, n in clusters], 0.95)[0] for clusters in rounds]
    assert [1 - low for low in mirrored] == pytest.approx(highs, abs=1e-5)


@pytest.mark.parametrize(
    ("questions", "draws"),
    [(3, 1000), (8, 400), (5, 100), *[pytest.param(q, 1000, marks=pytest.mark.full) for q in (4, 24)]],
)
def test_the_upper_end_does_not_fall_where_events_stop_being_few(questions: int, draws: int) -> None:
    """The running maximum once ended at 4 events a question: 8 x 400 fell from 7.3% at 32 events to 1.7% at 33."""
    even = [
        [(events // questions + (place < events % questions), draws) for place in range(questions)]
        for events in range(8 * questions + 1)
    ]
    highs = [high for _, high in random_questions_each(even)]
    assert highs == sorted(highs)


PROFILES = {
    "alike": [5, 6, 7, 8, 8, 8, 9, 10],
    "different": [1, 1, 2, 3, 6, 10, 16, 25],
    "two of eight carry it": [1, 1, 1, 1, 1, 1, 26, 33],
}


@pytest.mark.parametrize("events", PROFILES.values(), ids=PROFILES)
def test_one_draw_more_never_makes_the_interval_jump(events: list[int]) -> None:
    """Slide the rate of 8 questions x 50 draws over 20% and 50%, one draw after the other.

    One draw can do no more than a quarter of what a whole question can (1 / 8), where its question has had other events
    and has others to come. Student's t, once included from 20% to 80%, took the lower end from 12.1% to 0.
    """
    slide, counts = [list(events)], list(events)
    for step in range(8 * 30):
        counts[step % 8] = min(49, counts[step % 8] + 1)
        slide.append(list(counts))
    rates = [sum(one) / 400 for one in slide]
    assert rates[0] < 0.18 and rates[-1] > 0.7
    ends = np.array(random_questions_each([[(k, 50) for k in one] for one in slide]))
    assert np.abs(np.diff(ends, axis=0)).max() < 1 / 8 / 4


@pytest.mark.parametrize("clusters", [[], [(3, 10)], [(3, 10), (0, 0)]])
def test_one_question_says_nothing_about_others(clusters: list[tuple[int, int]]) -> None:
    assert all(math.isnan(end) for end in random_questions(clusters))


def test_many_draws_to_many_questions_leave_a_narrow_interval_around_the_rate() -> None:
    chance = np.random.default_rng(0)
    clusters = [(int(chance.binomial(2000, 0.3)), 2000) for _ in range(100)]
    low, high = rate_interval(clusters, 0.95)
    assert 0.294 < low < 0.3 < high < 0.306


@pytest.mark.simulation
@pytest.mark.parametrize(
    ("rate", "correlation"), [(0.005, 0.1), pytest.param(0.1, 0.05, marks=pytest.mark.full)]
)
def test_the_interval_covers_the_rate_of_all_questions(rate: float, correlation: float) -> None:
    """benchmarks/interval_coverage.py has the whole grid."""
    chance, spread = np.random.default_rng(7), (1 - correlation) / correlation
    covered = 0
    for _ in range(200):
        own = chance.beta(rate * spread, (1 - rate) * spread, size=24)
        low, high = rate_interval([(int(chance.binomial(100, p)), 100) for p in own], 0.95)
        covered += low <= rate <= high
    assert covered >= 182  # 95% of 200 is 190; below 182 comes once in 300 by chance
