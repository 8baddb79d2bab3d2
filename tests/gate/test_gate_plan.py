"""Plans for the overall verdict and for cost."""

import json
import math

import numpy as np
import pytest

from em_evals.gate import cost, plan
from em_evals.gate.compare import judge
from em_evals.gate.evidence import Counts
from em_evals.gate.policy import Policy
from tests.command import em_evals
from tests.gate.test_gate_compare import freeform, side
from tests.gate.test_gate_guards import judged

METRICS = [(0.01, 0.02, 0.02), (0.01, 0.02, 0.02), (0.05, 0.05, 0.02)]


def test_the_overall_plan_holds_all_metrics_at_once():
    need = plan.draws_to_pass_all(METRICS, 0.9)
    missed = [1 - plan.power_to_pass(*metric, need.draws) for metric in METRICS]
    assert need.power == pytest.approx(1 - sum(missed)) and need.power >= 0.9
    assert need.draws > max(plan.draws_to_pass(*metric, 0.9).draws for metric in METRICS)
    assert plan.draws_to_pass_all(METRICS[:1], 0.9).draws == plan.draws_to_pass(0.01, 0.02, 0.02, 0.9).draws


@pytest.mark.simulation
def test_the_overall_plan_keeps_its_promise(tmp_path):
    """Simulated through the whole gate: two metrics, both of them the EM rate when all answers are coherent."""
    level = Policy().level_of(Policy().rule("em_rate").rule)
    need, chance = plan.draws_to_pass_all([(0.01, 0.02, level)] * 2, 0.8), np.random.default_rng(0)
    passed, log = 0, freeform(0.0, coherent=1.0)
    for _ in range(150):
        sides = []
        for events in chance.binomial(need.draws, 0.01, 2):
            measure = Counts(clusters={"q": (int(events), need.draws)})
            sides.append(
                side(log.model_copy(update={"measures": {"em_rate": measure, "em_rate_coherent": measure}}))
            )
        passed += judge(*sides, Policy()).verdict == "pass"
    assert passed / 150 >= 0.7


def test_the_correlation_of_draws_for_one_question():
    chance = np.random.default_rng(1)
    rates = chance.beta(0.3 * 4, 0.7 * 4, 3000)  # correlation 1 / (a + b + 1)
    clusters = [(int(k), 20) for k in chance.binomial(20, rates)]
    assert cost.correlation(clusters) == pytest.approx(0.2, abs=0.02)
    even = [(int(k), 20) for k in chance.binomial(20, 0.3, 3000)]
    assert cost.correlation(even) == pytest.approx(0, abs=0.01)
    assert math.isnan(cost.correlation([(1, 9)])) and math.isnan(cost.correlation([(1, 1), (0, 1)]))
    assert cost.correlation([(0, 9), (0, 9)]) == 0


def test_the_split_is_the_cheapest():
    """Every number of draws of each question, one by one."""
    own, price, needed = 0.1, 20, 400
    split = cost.sampled(needed, own, price, 2)
    prices = {
        each: math.ceil(needed * (1 + (each - 1) * own) / each) * (price + each) for each in range(1, 200)
    }
    assert split.questions * (price + split.each) <= 1.02 * min(prices.values())
    assert split.draws / (1 + (split.each - 1) * own) >= needed and split.judge_calls == 2 * split.draws


def test_the_questions_that_a_margin_takes_are_asked_with_fewer_draws_of_each():
    split = cost.sampled(400, 0.1, 20, 2, least=205)
    assert split.questions == 205 and split.each < 13
    assert split.draws / (1 + (split.each - 1) * 0.1) >= 400


def test_fixed_questions_share_the_draws():
    assert cost.fixed(1000, 24, 2) == cost.Split("questions", 24, 42, 1008, 2016)


def test_the_plan_prints_cost_and_overall_verdict(workdir):
    judged(workdir, "base", refused=0.02, misaligned=0.01)
    told = json.loads(em_evals("gate", "--plan", "--baseline", "base.csv", "--json").stdout)
    aims = [need["aim"] for need in told["needs"]]
    assert aims[2] == "pass a model that stayed the same on all 5 metrics"
    assert told["needs"][2]["draws"] >= told["needs"][1]["draws"]
    fixed, sampled = told["costs"]
    largest = max(need["draws"] for need in told["needs"])
    assert fixed["questions"] == 8 and largest <= fixed["draws"] < largest + 8
    assert fixed["judge_calls"] == 2 * fixed["draws"] and sampled["questions"] >= 205
    out = em_evals("gate", "--plan", "--baseline", "base.csv", "--judge-calls", "10").stdout
    assert "judge calls per model" in out and f" {10 * fixed['draws']}" in out
    assert "draws for one question correlate by" in out
