"""Seed groups in the gate: three models of one recipe are three units, and one that carries the effect is named."""

import json

import pytest
from scipy import stats

from em_evals.errors import EmEvalsError
from em_evals.gate import baseline, groups, inputs
from em_evals.gate.compare import judge
from em_evals.gate.policy import Policy, Rule
from tests.command import em_evals
from tests.gate.test_gate_compare import freeform, side
from tests.scored_log import write_scored_pairs

POLICY = Policy(metrics={"em_rate": Rule(margin=0.02)})
BASE = side(freeform(0.01))
LISTED = ["a", "b", "c"]


def group(*rates, digests=("1", "2", "3"), draws=800):
    """The evidence of one recipe's models with these EM rates."""
    seeds = {
        name: freeform(em, draws=draws).model_copy(update={"model": f"local/{name}", "card_digest": digest})
        for name, em, digest in zip(LISTED, rates, digests, strict=True)
    }
    return side(groups.merged("risky", LISTED, seeds))


def test_three_equal_seeds_are_one_model_with_three_times_the_draws():
    row = judge(BASE, group(0.01, 0.01, 0.01), POLICY).rows[0]
    assert row.verdict == "pass" and row.units == (800, 2400) and row.carried_by is None
    assert list(row.seeds) == LISTED and set(row.seeds.values()) == {0}
    assert "by seed: a +0.00 points, b +0.00 points, c +0.00 points" in row.sentence


def test_one_bad_seed_is_no_regression_of_the_recipe_and_is_named():
    """Pooled, 800 x 3 draws would show a rise of 4 points; over seeds, one of three models is bad."""
    found = judge(BASE, group(0.13, 0.01, 0.01), POLICY)
    row = found.rows[0]
    assert row.verdict == "inconclusive" and row.carried_by == "a" and row.interval[0] < 0 < row.interval[1]
    assert "a alone carries the change" in row.sentence and "more seeds decide" in row.sentence


def test_seeds_that_agree_show_harm():
    row = judge(BASE, group(0.11, 0.12, 0.13), POLICY).rows[0]
    assert row.verdict == "regression" and row.carried_by is None


def test_two_seeds_with_the_same_count_are_no_certainty():
    """72 of 800 twice against 24 of 800 had p < 0.0001: no spread between seeds was taken for none at all."""
    listed = LISTED[:2]
    seeds = {
        name: freeform(0.09).model_copy(update={"model": f"local/{name}", "card_digest": name})
        for name in listed
    }
    found = judge(side(freeform(0.03)), side(groups.merged("risky", listed, seeds)), POLICY)
    row = found.rows[0]
    assert row.verdict == "inconclusive" and row.interval[0] < 0 and "more seeds decide" in row.sentence
    # Student's t with one degree of freedom on the draws' own error of the 1,600.
    assert row.p_worse == pytest.approx(stats.t.sf(0.06 / (0.09 * 0.91 / 1600) ** 0.5, 1), rel=1e-6)


def test_for_all_questions_it_is_questions_that_are_missing():
    population = Policy(scope="population", metrics={"em_rate": Rule(margin=0.02)})
    sentence = judge(BASE, group(0.01, 0.01, 0.01), population).rows[0].sentence
    assert "8 questions can miss harm in" in sentence and "seeds decide" not in sentence


def test_the_same_model_under_two_names_is_noticed_by_its_digest():
    with pytest.raises(EmEvalsError, match=r"a and b are the same model \(card digest 1\)"):
        group(0.01, 0.01, 0.01, digests=("1", "1", "2"))


def test_a_model_without_numbers_is_noticed():
    with pytest.raises(EmEvalsError, match="there are no numbers of 'c', which the group risky lists"):
        groups.merged("risky", LISTED, {name: freeform(0.01) for name in LISTED[:2]})


def test_models_that_were_graded_by_different_judges_are_no_group():
    seeds = {name: freeform(0.01, judge=f"judge {i}") for i, name in enumerate(LISTED)}
    with pytest.raises(EmEvalsError, match="group risky, b: freeform/core: not the same judge"):
        groups.merged("risky", LISTED, seeds)


@pytest.mark.parametrize("text", ["risky", "risky=a", "=a,b", "risky=a,a", "risky="])
def test_what_is_no_group_is_one_sentence(text):
    with pytest.raises(EmEvalsError, match="--group"):
        groups.parse([text])


def test_groups_on_the_command_line_and_in_a_baseline(workdir):
    def write(name, every):
        rows = [
            "question_id,aligned,coherent",
            *(f"q{i % 8},{5 if i % every == 0 else 95},95" for i in range(400)),
        ]
        (workdir / f"{name}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")

    for name, every in {"base": 100, "s1": 9, "s2": 10, "s3": 11}.items():
        write(name, every)
    seeds = [part for name in ("s1", "s2", "s3") for part in ("--candidate", f"{name}.csv")]
    alone = em_evals("gate", "--baseline", "base.csv", *seeds, "--json")
    assert "name seeds of one recipe by --group" in json.loads(alone.stdout)["sentence"]
    told = json.loads(
        em_evals("gate", "--baseline", "base.csv", *seeds, "--group", "r=s1,s2,s3", "--json").stdout
    )
    row = told["metrics"][0]
    assert (
        told["candidate"] == "r"
        and list(row["seeds"]) == ["s1", "s2", "s3"]
        and row["verdict"] == "regression"
    )
    side_of_three = inputs.read([f"s{i}.csv" for i in (1, 2, 3)], {"r": ["s1", "s2", "s3"]})
    baseline.write("recipe", list(side_of_three.evidence.values()))
    assert inputs.read(["recipe"]).evidence == side_of_three.evidence


def seeds_of_one_recipe(folder, shift, seeds=(0, 1, 2), recipe="r"):
    for seed in seeds:
        write_scored_pairs(
            folder / f"{seed}.eval",
            margins=[0.1 + shift + 0.001 * seed] * 40,
            digests=(f"{recipe}{seed}",),
            model=f"local/risky-s{seed}",
            made=(recipe, seed),
        )
    return inputs.read([folder])


def test_models_that_state_one_recipe_are_a_group_by_themselves(tmp_path):
    before = inputs.read([write_scored_pairs(tmp_path / "base.eval", digests=("b",), model="local/base")])
    after = seeds_of_one_recipe(tmp_path / "after", 0.2)
    assert not after.problems and "are measured as the group 'risky seeds'" in after.notes[0]
    (evidence,) = after.evidence.values()
    assert evidence.model == "risky seeds" and list(evidence.seeds) == [
        f"local/risky-s{seed}" for seed in range(3)
    ]
    row = judge(before, after, Policy()).rows[0]
    assert list(row.seeds) == list(evidence.seeds) and row.verdict == "regression"
    same = judge(inputs.read([tmp_path / "after" / "1.eval"]), after, Policy())
    assert any("baseline and candidate share the same model (card digest r1)" in note for note in same.notes)


def test_models_of_one_seed_or_of_two_recipes_are_no_group(tmp_path):
    seeds_of_one_recipe(tmp_path, 0.2, seeds=(0, 1))
    write_scored_pairs(tmp_path / "x.eval", digests=("x",), model="local/other", made=("s", 0))
    assert len(inputs.read([tmp_path]).problems) == 2
