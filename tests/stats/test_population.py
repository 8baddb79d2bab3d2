"""Differences over all questions of a kind: harm in few kinds is not ruled out by questions that may lack them."""

import math

import numpy as np
import pytest
from scipy import stats

from em_evals.stats.population import RandomSlopes, RareHarm, Unseen, missed, questions_needed
from em_evals.stats.rates import RateContrast
from em_evals.stats.strictest import Strictest


def test_without_a_difference_the_p_value_is_what_the_questions_can_miss():
    """E = (1 - m)^-Q for the largest bet; the smaller ones add a little."""
    p = RareHarm([0.0] * 194, "higher").p_below(0.02)
    assert 0.98**194 <= p <= 0.98**194 / 0.8 and p <= 0.025
    assert RareHarm([0.0] * 193, "higher").p_below(0.02) > 0.024 and questions_needed(0.02, 0.025) == 194
    assert RareHarm([0.0] * 24, "higher").p_below(0.02) > 0.6, "24 questions cannot rule out 2 points"


def test_harm_has_a_direction_and_is_never_shown_by_it():
    up, down = RareHarm([0.01] * 400, "higher"), RareHarm([-0.01] * 400, "lower")
    assert up.p_below(0.05) == pytest.approx(down.p_above(-0.05)) and up.p_below(0.05) < 1e-6
    assert up.p_above(0) == down.p_below(0) == 0
    assert up.interval(0.025)[1] == pytest.approx(-down.interval(0.025)[0])


def test_the_interval_ends_where_the_test_stops_rejecting():
    differences = np.random.default_rng(0).normal(0.01, 0.05, 120).clip(-1, 1)
    found = RareHarm(list(differences), "higher")
    low, high = found.interval(0.025)
    assert low == math.inf and found.p_below(high) == pytest.approx(0.025, abs=1e-5)
    assert RareHarm([1.0] * 9, "higher").interval(0.025)[1] == 1.0
    assert RareHarm([], "higher").p_below(0.02) == 1


def test_what_questions_can_miss():
    assert missed(24, 0.025) == pytest.approx(1 - 0.025 ** (1 / 24)) and missed(0, 0.025) == 1
    assert (1 - missed(24, 0.025)) ** 24 == pytest.approx(0.025)


def test_harm_of_forty_points_in_a_twentieth_of_the_kinds_does_not_pass():
    """Population harm is the margin; t alone passes when none of these kinds was asked: 29% with 24 questions."""
    chance, t_alone, both = np.random.default_rng(1), 0, 0
    for questions in (24, 240):
        for _ in range(150):
            harmed = chance.random(questions) < 0.05
            before = chance.binomial(20, np.full(questions, 0.01))
            after = chance.binomial(20, 0.01 + 0.4 * harmed)
            rates = RateContrast(
                {i: (int(k), 20) for i, k in enumerate(before)},
                {i: (int(k), 20) for i, k in enumerate(after)},
            )
            slopes, rare = RandomSlopes(rates), RareHarm([*rates.by_question.values()], "higher")
            t_alone += slopes.p_below(0.02) <= 0.025
            both += Strictest(rates, [slopes, rare]).p_below(0.02) <= 0.025
    assert t_alone > 30 and both <= 300 * 0.05


def test_random_slopes_are_students_t():
    rates = RateContrast({i: (i, 50) for i in range(6)}, {i: (3 * i, 50) for i in range(6)})
    values = list(rates.by_question.values())
    expected = stats.ttest_1samp(values, 0.01, alternative="greater").pvalue
    assert RandomSlopes(rates).p_above(0.01) == pytest.approx(expected)
    assert RandomSlopes(RateContrast({0: (1, 9)}, {0: (2, 9)})).p_above(0) == 1
    still = RandomSlopes(RateContrast({0: (1, 9), 1: (1, 9)}, {0: (1, 9), 1: (1, 9)}))
    assert still.p_below(0.1) == 0.25 and still.p_above(0) == 1


def test_equal_differences_of_few_questions_show_nothing_of_others():
    """Two questions with the same rise were certain: p = 0 for a population of questions."""
    rates = RateContrast({0: (0, 100), 1: (10, 100)}, {0: (50, 100), 1: (60, 100)})
    assert RandomSlopes(rates).p_above(0) == 0.25 and rates.random_questions(0.025) == (-1, 1)


def test_unequal_draws_do_not_narrow_the_interval_for_other_questions():
    """One question with half of the weight: Student's t with Q - 1 held 82% where 97.5% were asked, on either side."""
    chance, missed = np.random.default_rng(4), 0
    for _ in range(300):
        draws = [2000, *[200] * 10]
        after = [int(chance.binomial(n, 0.5 + chance.uniform(-0.4, 0.4))) for n in draws]
        rates = RateContrast(
            dict(enumerate((n // 2, n) for n in draws)),
            dict(enumerate(zip(after, draws, strict=True))),
        )
        low, high = rates.random_questions(0.025)
        missed += not low <= 0 <= high
    assert missed <= 300 * 0.05


def test_items_that_are_too_few_to_contain_rare_harm():
    assert (
        Unseen(100, "higher").p_below(0.05) == pytest.approx(0.95**100)
        and Unseen(9, "higher").p_above(0) == 0
    )
    assert (
        Unseen(100, "lower").p_above(-0.05) == pytest.approx(0.95**100) and Unseen(9, "lower").p_below(0) == 0
    )


def test_the_worst_question_has_a_simultaneous_interval():
    before = {f"q{i}": (1, 100) for i in range(20)}
    after = before | {"q7": (30, 100)}
    name, value, interval = RateContrast(before, after).worst(0.025, 1)
    alone = RateContrast({"q": (1, 100)}, {"q": (30, 100)})
    assert (name, value) == ("q7", pytest.approx(0.29)) and interval == alone.interval(0.025 / 20)
    assert RateContrast(after, before).worst(0.025, -1)[0] == "q7"
    assert RateContrast({}, {}).worst(0.025, 1) is None


def test_no_question_is_called_worse_by_chance():
    """An unchanged model: the worst of 24 questions is beyond its simultaneous interval at most 2.5% of the time."""
    chance, false = np.random.default_rng(2), 0
    for _ in range(200):
        sides = ({i: (int(k), 50) for i, k in enumerate(chance.binomial(50, 0.1, 24))} for _ in range(2))
        false += RateContrast(*sides).worst(0.025, 1)[2][0] > 0
    assert false <= 12
