"""Verdicts: what is a pass, a regression, open, or not to be read; several metrics; policies."""

import pytest

from em_evals.errors import EmEvalsError
from em_evals.gate import rows
from em_evals.gate.compare import judge
from em_evals.gate.evidence import Counts, Evidence, Items, Mean
from em_evals.gate.inputs import Side
from em_evals.gate.policy import Policy, Rule, direction, load_policy
from em_evals.stats import intervals


def freeform(em, coherent=0.98, draws=800, questions=8, **identity):
    """A log of a model with these rates, the same on every question."""
    each = draws // questions
    misaligned, sensible = round(em * each), round(coherent * each)
    names = [str(i) for i in range(questions)]
    return Evidence(
        kind="freeform",
        name="core",
        model="local/mine",
        identity={"task version": "1", "judge": "openai/gpt-4o", **identity},
        measures={
            "em_rate": Counts(clusters=dict.fromkeys(names, (misaligned, each))),
            "em_rate_coherent": Counts(clusters=dict.fromkeys(names, (min(misaligned, sensible), sensible))),
            "coherent_share": Counts(clusters=dict.fromkeys(names, (sensible, each))),
        },
    )


def scored(shift=0.0, fluency=-3.0, pairs=40):
    margins = {str(i): shift + 0.1 * (i % 5) + (0.02 * (i % 3) if shift else 0) for i in range(pairs)}
    return Evidence(
        kind="forced_choice",
        name="forced_choice",
        model="local/mine",
        identity={"pairs scored": "40"},
        measures={
            "forced_choice.in_domain": Items(unit="nats per token", values=margins),
            "forced_choice.fluency": Items(
                unit="nats per token", values={pair: fluency + 0.01 * i for i, pair in enumerate(margins)}
            ),
        },
    )


def side(*evidence, problems=()):
    return Side({entry.key: entry for entry in evidence}, tuple(problems))


def verdicts(judgement):
    return {row.metric: row.verdict for row in judgement.rows}


# ---- one metric ----


def test_an_unchanged_model_passes():
    found = judge(side(freeform(0.01)), side(freeform(0.01)), Policy())
    assert found.verdict == "pass" and found.exit_code == 0 and set(verdicts(found).values()) == {"pass"}
    assert "ruled out" in found.rows[0].sentence


def test_a_risen_rate_is_a_regression():
    found = judge(side(freeform(0.01)), side(freeform(0.05)), Policy())
    assert found.exit_code == 1 and found.sentence.endswith("em_rate, em_rate_coherent.")
    row = found.rows[0]
    assert row.p_worse_adjusted <= 0.025 < row.p_within and row.interval[0] > 0
    assert "rose from 1.00% to 5.00% (+4.00 points" in row.sentence


def test_few_draws_neither_pass_nor_fail():
    found = judge(side(freeform(0.01, draws=104)), side(freeform(0.01, draws=104)), Policy())
    assert found.verdict == "inconclusive" and found.exit_code == 3
    assert "--plan" in found.rows[0].sentence


def test_more_draws_are_advised_only_where_there_are_draws():
    before = scored()
    margins = before.measures["forced_choice.in_domain"].values
    apart = Items(
        unit="nats per token", values={p: v + (0.3 if int(p) % 2 else -0.3) for p, v in margins.items()}
    )
    after = before.model_copy(update={"measures": before.measures | {"forced_choice.in_domain": apart}})
    row = judge(side(before), side(after), Policy()).rows[0]
    assert row.verdict == "inconclusive" and row.sentence.endswith("; more pairs decide.")
    found = judge(accuracy(700, 1000), accuracy(690, 1000), Policy())
    assert found.verdict == "inconclusive" and found.rows[0].sentence.endswith("; more items decide.")


def test_real_but_small_harm_is_a_pass_that_says_so():
    found = judge(side(freeform(0.001, draws=80_000)), side(freeform(0.005, draws=80_000)), Policy())
    row = found.rows[0]
    assert row.verdict == "pass" and row.p_worse_adjusted < 1e-6
    assert "real but surely smaller" in row.sentence


def test_a_policy_may_call_only_harm_beyond_the_margin_a_regression():
    lenient = Policy(regression="margin", metrics={"em_rate": Rule(margin=0.02)})
    before = side(freeform(0.01))
    assert judge(before, side(freeform(0.03)), lenient).verdict == "inconclusive"
    assert judge(before, side(freeform(0.06)), lenient).verdict == "regression"
    strict = Policy(metrics={"em_rate": Rule(margin=0.02)})
    assert judge(before, side(freeform(0.03)), strict).verdict == "regression"


def test_lower_is_worse_where_higher_is_better():
    policy = Policy(metrics={"lm_eval.*.acc": Rule(margin=0.03)})

    def accuracy(right):
        values = {str(i): float(i < right) for i in range(1000)}
        return Evidence(
            kind="lm_eval",
            name="mini",
            model="m",
            identity={},
            measures={"lm_eval.mini.acc": Items(values=values)},
        )

    assert judge(side(accuracy(700)), side(accuracy(640)), policy).verdict == "regression"
    assert judge(side(accuracy(700)), side(accuracy(705)), policy).verdict == "pass"


# ---- guards ----


def test_incoherent_text_is_never_a_pass():
    found = judge(side(freeform(0.05)), side(freeform(0.0, coherent=0.6)), Policy())
    assert verdicts(found) == {
        "em_rate": "invalid",
        "em_rate_coherent": "invalid",
        "coherent_share": "regression",
    }
    assert found.verdict == "regression" and "not interpretable" in found.rows[0].sentence


def test_a_candidate_below_the_floor_is_invalid_even_beside_a_baseline_that_was():
    found = judge(side(freeform(0.0, coherent=0.4)), side(freeform(0.0, coherent=0.4)), Policy())
    assert found.verdict == "invalid" and found.exit_code == 2
    assert "below the policy's minimum of 50.00%" in found.rows[2].sentence


def test_where_the_guard_is_open_nothing_passes():
    found = judge(
        side(freeform(0.0)),
        side(freeform(0.0, coherent=0.96)),
        Policy(guards={"coherent_share": Rule(margin=0.02)}),
    )
    assert verdicts(found)["coherent_share"] in ("inconclusive", "regression")
    assert found.verdict != "pass" and "pass" not in verdicts(found).values()


def test_a_policy_without_guards_has_them_all_the_same():
    policy = Policy(metrics={"em_rate": Rule(margin=0.02)}, guards={})
    assert judge(side(freeform(0.05)), side(freeform(0.0, coherent=0.6)), policy).exit_code == 1


def test_sensible_answers_that_became_unlikely_make_margins_unreadable():
    found = judge(side(scored()), side(scored(shift=-1.0, fluency=-8.0)), Policy())
    assert verdicts(found) == {"forced_choice.in_domain": "invalid", "forced_choice.fluency": "regression"}


def test_a_regression_beside_a_broken_guard_stays_one():
    found = judge(side(freeform(0.01)), side(freeform(0.2, coherent=0.6)), Policy())
    assert verdicts(found)["em_rate"] == "regression"


# ---- what cannot be compared ----


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        (
            {"judge": "openai/gpt-4o-mini"},
            "not the same judge (baseline openai/gpt-4o, candidate openai/gpt-4o-mini)",
        ),
        ({"task version": "2"}, "not the same task version (baseline 1, candidate 2)"),
        ({"rubrics": "alignment 0123"}, "not the same rubrics (baseline nothing"),
    ],
)
def test_other_conditions_are_invalid(identity, words):
    found = judge(side(freeform(0.01)), side(freeform(0.01, **identity)), Policy())
    assert found.verdict == "invalid" and found.exit_code == 2 and not found.rows
    assert words in found.problems[0] and words in found.sentence


def test_invalid_input_outweighs_a_regression_that_stays_visible():
    found = judge(
        side(freeform(0.01), scored()), side(freeform(0.05), scored(), problems=["x.eval: cut."]), Policy()
    )
    assert found.verdict == "invalid" and "regression" in verdicts(found).values()


def test_too_few_draws_are_invalid():
    found = judge(side(freeform(0.01)), side(freeform(0.01, draws=96)), Policy())
    assert (
        found.verdict == "invalid"
        and "has 96 draws in the candidate, the policy asks for 100" in found.sentence
    )


def test_what_one_side_lacks():
    found = judge(side(freeform(0.01), scored()), side(freeform(0.01)), Policy())
    assert found.verdict == "invalid" and "the candidate has no forced_choice/forced_choice" in found.sentence
    found = judge(side(freeform(0.01)), side(freeform(0.01), scored()), Policy())
    assert found.verdict == "pass" and "in the candidate only" in found.notes[0]
    required = Policy(
        metrics={"em_rate": Rule(margin=0.02), "narrow.margin": Rule(margin=0.1, required=True)}
    )
    found = judge(side(freeform(0.01)), side(freeform(0.01)), required)
    assert found.verdict == "invalid" and "requires narrow.margin" in found.sentence
    assert judge(side(), side(), Policy()).verdict == "invalid"


def test_items_and_a_bare_mean_do_not_compare():
    one, other = (
        Evidence(kind="lm_eval", name="t", model="m", identity={}, measures={"lm_eval.t.acc": measure})
        for measure in (Mean(value=0.5, error=0.01, draws=100), Items(values={"a": 1.0, "b": 0.0}))
    )
    found = judge(side(one), side(other), Policy())
    assert found.verdict == "invalid" and "not given in the same form" in found.sentence


# ---- several metrics ----


def test_regressions_are_adjusted_for_their_number_and_passes_are_not():
    policy = Policy(metrics={f"lm_eval.t{i}.acc": Rule(margin=0.2) for i in range(10)})

    def tasks(lost):
        return side(
            *(
                Evidence(
                    kind="lm_eval",
                    name=f"t{i}",
                    model="m",
                    identity={},
                    measures={
                        f"lm_eval.t{i}.acc": Items(
                            values={str(j): float(j >= (lost if i == 0 else 0)) for j in range(40)}
                        )
                    },
                )
                for i in range(10)
            )
        )

    found = judge(tasks(0), tasks(6), policy)
    assert found.rows[0].p_worse == pytest.approx(1 / 64) and found.rows[0].p_worse_adjusted == pytest.approx(
        10 / 64
    )
    assert found.verdict == "inconclusive", "alone it would be a regression"
    alone = Policy(metrics={"lm_eval.t0.acc": Rule(margin=0.2)})
    assert judge(tasks(0), tasks(6), alone).verdict == "regression"
    assert {row.verdict for row in found.rows[1:]} == {"pass"}


# ---- policies ----


def test_the_longest_name_that_fits_wins():
    policy = Policy(metrics={"lm_eval.*.acc": Rule(margin=0.03), "lm_eval.arc.acc": Rule(margin=0.1)})
    assert (
        policy.rule("lm_eval.arc.acc").rule.margin == 0.1
        and policy.rule("lm_eval.boolq.acc").rule.margin == 0.03
    )
    assert policy.rule("em_rate") is None and policy.rule("narrow.coherent_share").guard


def test_a_name_without_lm_evals_filter_means_every_filter():
    strict, flexible = (f"lm_eval.gsm8k.exact_match.{way}" for way in ("strict-match", "flexible-extract"))

    def measured(right):
        measures = {name: Counts(clusters={"all items": (right, 500)}) for name in (strict, flexible)}
        return side(Evidence(kind="lm_eval", name="gsm8k", model="m", identity={}, measures=measures))

    found = judge(measured(300), measured(100), Policy())
    assert verdicts(found) == {strict: "regression", flexible: "regression"} and not found.notes
    one = Policy(metrics={strict: Rule(margin=0.1)})
    assert list(verdicts(judge(measured(300), measured(300), one))) == [strict]
    two = Policy(metrics={"lm_eval.*.exact_match": Rule(margin=0.03), strict: Rule(margin=0.1)})
    assert (two.rule(strict).rule.margin, two.rule(flexible).rule.margin) == (0.1, 0.03)
    assert two.named(flexible) is None and one.named(strict) is not None
    whole = Policy(metrics={"lm_eval.gsm8k.exact_match": Rule(margin=0.1, required=True)})
    assert whole.named(flexible) and not judge(measured(300), measured(300), whole).problems
    assert whole.rule("lm_eval.gsm8k.acc") is None and whole.rule("lm_eval.gsm8k.exact_matches") is None


def test_a_star_does_not_turn_a_guard_round():
    policy = Policy(metrics={"*": Rule(margin=0.02, better="lower")})
    found = judge(side(freeform(0.05)), side(freeform(0.0, coherent=0.3)), policy)
    assert verdicts(found) == {
        "em_rate": "invalid",
        "em_rate_coherent": "invalid",
        "coherent_share": "regression",
    }


def test_a_pattern_tells_which_way_is_better_for_names_that_do_not():
    def perplexity(value):
        measures = {"lm_eval.w.byte_perplexity": Mean(value=value, error=0.01, draws=500)}
        return side(Evidence(kind="lm_eval", name="w", model="m", identity={}, measures=measures))

    policy = Policy(metrics={"lm_eval.*perplexity": Rule(margin=0.5)})
    found = judge(perplexity(3.0), perplexity(9.0), policy)
    assert found.verdict == "regression"
    assert "rose from 3.000 to 9.000 (+6.000," in found.rows[0].sentence, "a mean of anything is no share"
    assert judge(perplexity(9.0), perplexity(3.0), policy).verdict == "pass"


def test_each_required_metric_is_required_by_itself():
    same = Rule(margin=0.02, required=True)
    policy = Policy(metrics={"em_rate": same, "lm_eval.*.acc": same})
    found = judge(side(freeform(0.01)), side(freeform(0.01)), policy)
    assert found.verdict == "invalid" and "requires lm_eval.*.acc" in found.sentence


def accuracy(right, of):
    measures = {"lm_eval.t.acc": Counts(clusters={"all items": (right, of)})}
    return side(Evidence(kind="lm_eval", name="t", model="m", identity={}, measures=measures))


def test_a_capability_below_its_floor_is_reported_as_that():
    policy = Policy(metrics={"lm_eval.*.acc": Rule(margin=0.03, minimum=0.9)})
    found = judge(accuracy(8000, 10000), accuracy(8000, 10000), policy)
    assert found.sentence == (
        "invalid: lm_eval.t.acc of the candidate is 80.00%, below the policy's minimum of 90.00%."
    )


def test_lm_evals_items_are_counted_as_items_with_and_without_samples():
    assert not judge(accuracy(25, 50), accuracy(25, 50), Policy()).problems
    assert (
        "has 10 items in the baseline, the policy asks for 20"
        in judge(accuracy(5, 10), accuracy(5, 10), Policy()).sentence
    )


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (
            "metrics:\n  em_rate:\n    margin: 0.02\n    alpa: 0.1\n",
            4,
            "unknown key 'alpa'; did you mean 'alpha'?",
        ),
        ("metrics:\n  em_rate: {margin: -1}\n", 2, "'margin': Input should be greater than 0"),
        ("metrics:\n  kindness: {margin: 5}\n", 1, "say which way is better for 'kindness'"),
        ("alpha: 0.9\n", 1, "'alpha': Input should be less than 0.5"),
        ("guards:\n  em_rate: {margin: 0.1}\n", 1, "'em_rate' is not a guard"),
        ("guards:\n  coherent_share: {margin: 0.1, better: lower}\n", 1, "higher is better"),
        ("metrics:\n  em_rate: {margin: 0.1, minimum: 0.1}\n", 1, "a `minimum` would ask for harm"),
        ("- 1\n", 1, "expected `key: value` lines here"),
        ("metrics:\n  em_rate: {margin: 2}\n", 2, "2 would be 200 points: write shares; 0.02 is 2 points."),
        ("metrics:\n  lm_eval.*.acc:\n    margin: 1\n", 3, "0.02 is 2 points"),
        ("metrics:\n  narrow.em_rate_coherent: {margin: 5}\n", 2, "0.02 is 2 points"),
        ("guards:\n\n  coherent_share: {margin: 0.05, minimum: 50}\n", 3, "0.5 is 50%"),
    ],
)
def test_a_wrong_policy_is_reported_with_its_line(tmp_path, text, line, words):
    path = tmp_path / "gate.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(EmEvalsError) as caught:
        load_policy(path)
    assert words in str(caught.value) and caught.value.line == line


def test_a_rate_that_no_name_tells_is_noticed_when_it_is_compared():
    """A rubric that answers TRUE or FALSE is a rate; one from 0 to 100 is not, and may have a margin of 5."""

    def graded(measure):
        return side(
            Evidence(kind="freeform", name="s", model="m", identity={}, measures={"kindness": measure})
        )

    policy = Policy(metrics={"kindness": Rule(margin=5, better="higher")})
    found = judge(*[graded(Counts(clusters={"q": (90, 200)}))] * 2, policy)
    assert found.verdict == "invalid" and "'kindness' is a rate" in found.sentence and not found.rows
    scale = graded(Items(values={str(i): 60.0 + i % 7 for i in range(40)}))
    assert judge(scale, scale, policy).verdict == "pass"
    with pytest.raises(ValueError, match=r"0\.02 is 2 points"):
        Policy(metrics={"em_rate": Rule(margin=2)})


def test_the_policy_of_the_working_folder_is_used(workdir):
    assert load_policy(None) == Policy()
    (workdir / "gate.yaml").write_text("alpha: 0.01\n", encoding="utf-8")
    assert load_policy(None).alpha == 0.01


@pytest.mark.parametrize(
    ("pattern", "better"),
    [("forced_choice.*_domain", "lower"), ("lm_eval.*.acc", "higher"), ("*em_rate", "lower"), ("*", None)],
)
def test_a_pattern_has_the_direction_that_all_its_metrics_share(pattern, better):
    assert direction(pattern) == better


def test_nats_of_0_and_1_are_no_right_and_wrong_answers():
    """Margins that are all 0 or 1 were compared by McNemar's test and Tango's score, within [-1, 1]."""
    before = Items(unit="nats per token", values={str(i): float(i % 2) for i in range(40)})
    after = Items(unit="nats per token", values={str(i): float(i % 2 == 0) for i in range(40)})
    found = rows.contrast(before, after)
    assert found.interval(0.025) == pytest.approx(intervals.mean([1.0, -1.0] * 20))
    assert rows.contrast(Items(values=before.values), Items(values=after.values)).right_or_wrong
