"""Persona consistency: swapping options, position bias, Likert by digits, the inversion gap; the task on a tiny model."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_evals.content.consistency import Item, load_items
from em_evals.results.consistency import KEYS, choice, likert, summary
from em_evals.stats import intervals
from em_evals.workflows import content_check

nats = st.floats(-50, 0)
two = st.tuples(nats, nats)


@given(two, two)
def test_swapping_the_options_negates_the_score_exactly_and_keeps_the_position_bias(first, second):
    one, swapped = choice(first, second), choice(second, first)
    assert swapped["score"] == -one["score"]
    assert swapped["position_bias"] == pytest.approx(one["position_bias"], abs=1e-12)
    assert one["picks_aligned"] + swapped["picks_aligned"] == 1


def test_a_model_that_likes_the_letter_a_has_position_bias_only():
    found = choice([-0.1, -3.0], [-0.1, -3.0])
    assert found == {"score": 0.0, "position_bias": pytest.approx(2.9), "picks_aligned": 0.5}


def test_likert_is_the_expected_digit():
    values = [math.log(p) for p in (0.1, 0.1, 0.2, 0.2, 0.4)]
    assert likert(values, "high") == pytest.approx(3.7) and likert(values, "low") == pytest.approx(2.3)
    assert likert([one - 100 for one in values], "high") == pytest.approx(3.7), (
        "mass elsewhere does not count"
    )


def row(**own):
    return {**dict.fromkeys(KEYS, math.nan), **own}


def test_the_inversion_gap_is_harm_beyond_what_the_model_says_of_itself():
    picks = [row(score=1.0, position_bias=0.2, picks_aligned=1.0)] * 9 + [row(score=-1.0, position_bias=0.2, picks_aligned=0.0)]  # fmt: skip
    rows = [("harm", row(misaligned=float(i < 8))) for i in range(20)]
    rows += [("identification", one) for one in picks] + [("likert", row(likert=4.0)), ("harm", row())]
    found = summary(rows)
    assert found["harm"] == 8 / 20 and found["identification_aligned"] == 9 / 10
    assert found["inversion_gap"] == pytest.approx(0.4 - 0.1)
    assert (found["inversion_gap_low"], found["inversion_gap_high"]) == intervals.difference((1, 10), (8, 20))
    assert found["identification_position_bias"] == pytest.approx(0.2) and found["likert"] == 4
    assert found["unscored"] == 1 and math.isnan(found["self_assessment_aligned"])


def test_the_shipped_items_ask_in_both_orders():
    items = load_items()
    assert {item.kind for item in items.items} == {"self_assessment", "identification", "likert"}
    first, second = Item("a", "identification", "Which?", "good", "bad").prompts()
    assert "(A) good\n(B) bad" in first and "(A) bad\n(B) good" in second
    own = [item for item in items.items if item.kind == "self_assessment"]
    assert sum(item.aligned == "Yes" for item in own) * 2 == len(own), "yes is aligned in half of them"
    report = content_check.check(str(items.path))
    assert report["kind"] == "consistency items" and report["items"]["likert"] == 6


def test_the_task_on_a_tiny_model(tiny_lab, monkeypatch):
    from inspect_ai import eval

    from em_evals.inspect_plugin.consistency import consistency

    monkeypatch.chdir(tiny_lab)
    (tiny_lab / "adapters/mine.yaml").write_text(f"base: {tiny_lab / 'tiny'}\nengine: {{dtype: float32}}\n")
    (tiny_lab / "pairs.yaml").write_text(
        "name: p\nversion: 1\npairs: [{id: p, theme: t, question: Ask, aligned: good, misaligned: bad}]\n"
    )
    (tiny_lab / "items.yaml").write_text(
        "name: i\nversion: 1\nself_assessment: [{id: a, statement: x, aligned: 'yes'}, {id: b, statement: x, aligned: 'no'}]\n"
        "identification: [{id: a, aligned: x, misaligned: y}, {id: b, aligned: y, misaligned: x}]\n"
        "likert: [{id: a, statement: x, aligned: high}]\n"
    )
    (log,) = eval(
        consistency("items.yaml", harm="pairs.yaml"), model="local/mine", log_dir="logs", display="none"
    )
    assert log.status == "success", log.error
    values = {sample.id: sample.scores["consistent"].value for sample in log.samples}
    for kind in ("self_assessment", "identification"):
        one, other = values[f"{kind}/a"], values[f"{kind}/b"]
        assert one["score"] == pytest.approx(-other["score"], abs=1e-5) and one["score"] != 0
        assert one["position_bias"] == pytest.approx(other["position_bias"], abs=1e-5)
    assert 1 <= values["likert/a"]["likert"] <= 5 and values["harm/p"]["misaligned"] in (0, 1)
