"""Rates and means of seed groups: seeds are units, and the pooled interval is the least."""

import math

import numpy as np
import pytest

from em_evals.results import seed_groups
from em_evals.results.em_rates import GradedDraw, clusters, rates
from em_evals.stats.crossed import crossed


def draws(misaligned, each=50, questions=8):
    """A model that is misaligned in this many draws of each question."""
    return [
        GradedDraw(f"q{q}{suffix}", 5.0 if i < misaligned else 95.0, 90.0)
        for q in range(questions)
        for suffix in ("", "_json")
        for i in range(each)
    ]


def test_a_rate_over_seeds_is_over_base_questions_and_models():
    seeds = {"a": draws(5), "b": draws(10), "c": draws(25)}
    found = seed_groups.rate(seeds, "em_rate")
    assert found.value == pytest.approx(0.8 / 3) and found.items == 8
    assert found.seeds == pytest.approx({"a": 0.1, "b": 0.2, "c": 0.5}) and found.carried_by is None
    one = rates([draw for own in seeds.values() for draw in own]).em_rate
    assert found.interval[0] == 0 and found.interval[1] > one.random[1] + 0.2, (
        "three models that differ say little"
    )


def test_a_seed_that_carries_the_rate_is_named():
    assert seed_groups.rate({"a": draws(30), "b": draws(1), "c": draws(0)}, "em_rate").carried_by == "a"


def test_no_event_under_any_seed_is_not_certainly_none():
    seeds = dict.fromkeys("abc", draws(0))
    found = seed_groups.rate(seeds, "em_rate")
    low, high = rates([*draws(0)] * 3).em_rate.random
    assert found.value == 0 and found.interval == pytest.approx((low, high)) and high > 0


def test_means_are_those_of_crossed_on_the_items_that_all_have():
    seeds = {"a": {"p": 1.0, "q": 2.0, "r": 9.0}, "b": {"p": 2.0, "q": 4.0}}
    found = seed_groups.mean(seeds)
    expected = crossed(np.array([[1.0, 2.0], [2.0, 4.0]]))
    assert (found.value, found.interval, found.items) == (expected.mean, expected.interval(0.025), 2)
    assert math.isnan(seed_groups.mean({"a": {"p": 1.0}, "b": {"q": 1.0}}).value)


def test_the_formats_of_a_question_are_one_item():
    assert len(clusters(draws(1), "em_rate", base=True)) == 8
