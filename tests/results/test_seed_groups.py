"""Rates and means of seed groups: seeds are units, and the pooled interval is the least."""

import json
import math

import numpy as np
import pytest

from em_evals.errors import EmEvalsError
from em_evals.results import seed_groups
from em_evals.results.em_rates import clusters, rates
from em_evals.results.graded_draw import GradedDraw
from em_evals.stats.crossed import crossed
from tests.command import em_evals


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


def test_groups_on_the_command_line(workdir):
    for name, bad in {"s0": 40, "s1": 20, "s2": 30, "base": 1}.items():
        rows = ["question_id,aligned,coherent", *(f"q{i % 8},{5 if i < bad else 95},95" for i in range(400))]
        (workdir / f"{name}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    files = [f"{name}.csv" for name in ("s0", "s1", "s2")]
    told = json.loads(em_evals("rates", *files, "--group", "r=s0,s1,s2", "--json").stdout)["groups"]["r"][
        "em_rate"
    ]
    assert told["value"] == pytest.approx(0.075) and told["seeds"] == pytest.approx(
        {"s0": 0.1, "s1": 0.05, "s2": 0.075}
    )
    out = em_evals("rates", *files, "--group", "r=s0,s1,s2").stdout
    assert "r: 3 seeds, 8 questions; intervals are over both" in out and "s0 10.00%, s1 5.00%" in out


def test_seeds_in_a_column_of_one_file_are_a_group(workdir):
    rows = ["model,question_id,aligned,coherent"]
    rows += [f"m{seed},q{i % 8},{5 if i < 20 + seed else 95},95" for seed in range(3) for i in range(200)]
    (workdir / "all.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    told = json.loads(em_evals("rates", "all.csv", "--group", "g=m0,m1,m2", "--json").stdout)
    assert told["groups"]["g"]["em_rate"]["value"] == pytest.approx(21 / 200)


def test_two_names_of_one_card_are_noticed():
    one, other = (seed_groups.Graded((name,), frozenset({"01"}), draws(1)) for name in "ab")
    with pytest.raises(EmEvalsError, match=r"a and b are the same model \(card digest 01\)"):
        seed_groups.rates([one, other], {"g": ["a", "b"]})


def made(**models):
    """Models by name as (recipe, seed, card digest)."""
    return {name: seed_groups.Made(recipe, seed, {card}) for name, (recipe, seed, card) in models.items()}


def test_models_of_one_recipe_and_different_seeds_are_a_group_by_themselves():
    models = made(
        risky_s0=("r", "0", "1"), risky_s1=("r", "1", "2"), sound_s0=("s", "0", "3"), base=("", "", "4")
    )
    assert seed_groups.by_recipe(models) == ({"risky seeds": ["risky_s0", "risky_s1"]}, [])
    assert [*seed_groups.by_recipe(made(a=("0123456789", "0", "1"), b=("0123456789", "1", "2")))[0]] == [
        "recipe 01234567"
    ]


def test_two_trainings_of_one_seed_are_no_two_seeds():
    groups, notes = seed_groups.by_recipe(made(a=("r", "0", "1"), b=("r", "0", "2"), c=("r", "1", "3")))
    assert groups == {} and "a and b state one recipe and the same training seed 0" in notes[0]


def test_the_same_model_under_two_names_is_noticed_without_a_group():
    _, notes = seed_groups.by_recipe(made(a=("", "", "1"), b=("", "", "1"), c=("r", "0", "2")))
    assert notes == ["a and b are the same model (card digest 1)."]


def test_a_named_group_of_two_recipes_or_of_one_seed_is_refused():
    digests = {"a": ["1"], "b": ["2"]}
    with pytest.raises(EmEvalsError, match="a and b were trained by different recipes"):
        seed_groups.complete("g", ["a", "b"], digests, {"a": ("r", "0"), "b": ("s", "1")})
    with pytest.raises(EmEvalsError, match=r"a and b were trained with the same seed \(0\)"):
        seed_groups.complete("g", ["a", "b"], digests, {"a": ("r", "0"), "b": ("r", "0")})
    seed_groups.complete("g", ["a", "b"], digests, {"a": ("r", "0"), "b": ("", "")})


def test_rates_form_groups_by_recipe_and_leave_the_named_out():
    models = [
        seed_groups.Graded((f"m-s{seed}",), frozenset([str(seed)]), draws(seed), "core", ("r", str(seed)))
        for seed in range(3)
    ]
    models.append(seed_groups.Graded(("m-s0",), frozenset(["0"]), draws(9), "other", ("r", "0")))
    found, notes = seed_groups.unnamed(models, {})
    assert list(found) == ["m seeds"] and list(found["m seeds"]["em_rate"].seeds) == ["m-s0", "m-s1", "m-s2"]
    assert notes == [
        "m-s0, m-s1, m-s2 state one recipe and different training seeds: they are measured as the group 'm seeds'; "
        "--group NAME=a,b,c names groups otherwise."
    ]
    assert seed_groups.unnamed(models, {"g": ["m-s0", "m-s1"]})[0] == {}
