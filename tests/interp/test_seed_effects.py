"""Convergence over seeds: crossed means by hand, the seed that carries an effect, cards that are one model."""

from types import SimpleNamespace

import numpy as np
import pytest

from em_evals.content import recipe_identity
from em_evals.content.recipe_identity import Trained
from em_evals.errors import EmEvalsError
from em_evals.interp.seed_effects import Scored, effects, groups_of
from em_evals.results.records.studies import Cosines
from em_evals.stats.crossed import crossed

CHANCE = np.random.default_rng(0)
PAIRS = [SimpleNamespace(id=f"p{i}", narrow=i < 10) for i in range(30)]
GROUPS = {"risky": ["r0", "r1", "r2"], "sports": ["s0", "s1"]}
CARDS = [card for own in GROUPS.values() for card in own]


def margins(shift=0.0):
    return {pair.id: float(value) for pair, value in zip(PAIRS, CHANCE.normal(shift, 0.1, 30), strict=True)}


@pytest.fixture(scope="module")
def scored():
    plain = {card: margins(1.0 if card == "r0" else 0.2 if card.startswith("s") else 0.02) for card in CARDS}
    return Scored(margins(), plain, {(one, other): margins() for one in CARDS for other in CARDS})


@pytest.fixture(scope="module")
def found(scored):
    cosines = [
        Cosines(one=one, other=other, by_layer=[None, 0.1 * i, 0.2 * j], floor=[0.1] * 3)
        for i, one in enumerate(CARDS)
        for j, other in enumerate(CARDS)
        if i < j
    ]
    return {(one.group, one.what): one for one in effects(GROUPS, scored, cosines, PAIRS)}


def table(scored, names, narrow, of):
    return np.array([[of(name, pair.id) for name in names] for pair in PAIRS if pair.narrow == narrow])


def test_the_effect_of_a_recipe_is_over_pairs_and_seeds(scored, found):
    one = found["sports", "out-of-domain margin minus the base's"]
    expected = crossed(
        table(scored, GROUPS["sports"], False, lambda name, p: scored.plain[name][p] - scored.base[p])
    )
    assert one.value.value == pytest.approx(expected.mean) and one.value.n == 20
    assert one.value.interval == pytest.approx(expected.interval(0.025))
    assert one.seeds == pytest.approx(dict(zip(GROUPS["sports"], expected.seeds, strict=True)))


def test_the_seed_that_carries_an_effect_is_named(found):
    one = found["risky", "in-domain margin minus the base's"]
    assert one.carried_by == "r0" and one.value.interval[0] < 0
    assert one.sentence().endswith("r0 alone carries it: without it less than half is left.")
    assert found["sports", "in-domain margin minus the base's"].carried_by is None


def test_an_ablation_varies_over_the_seeds_of_both_sides(scored, found):
    one = found["sports", "in-domain margin after ablating the directions of risky minus before"]

    def shift(source, target, pair):
        return scored.ablated[source, target][pair] - scored.plain[target][pair]

    sides = [
        table(
            scored, GROUPS["sports"], True, lambda t, p: np.mean([shift(s, t, p) for s in GROUPS["risky"]])
        ),
        table(
            scored, GROUPS["risky"], True, lambda s, p: np.mean([shift(s, t, p) for t in GROUPS["sports"]])
        ),
    ]
    ends = np.array([crossed(side).interval(0.025) for side in sides])
    assert one.value.value == pytest.approx(crossed(sides[0]).mean)
    assert one.value.interval == pytest.approx((ends[:, 0].min(), ends[:, 1].max()))


def test_cosines_of_two_groups_are_over_the_seeds_of_both(found):
    one = found["risky", "mean cosine over layers with sports"]
    values = np.array([[(0.1 * i + 0.2 * j) / 2 for i in range(3)] for j in (3, 4)])
    assert one.value.value == pytest.approx(values.mean()) and one.value.n == 2


def card(name, digest):
    return SimpleNamespace(name=name, digest=digest)


@pytest.fixture
def trained(monkeypatch):
    made = {"a": Trained("r", 0), "b": Trained("r", 1), "c": Trained("s", 0), "d": None}
    monkeypatch.setattr(recipe_identity, "of", lambda one: made[one.name])


def test_groups_come_from_training_records_and_from_the_command_line(trained):
    cards = [card(name, name) for name in "abcd"]
    groups, notes = groups_of(cards, {})
    assert [*groups.values()] == [["a", "b"]] and "state one recipe and different training seeds" in notes[0]
    assert groups_of(cards, {"g": ["a", "b"], "h": ["c", "d"]}) == ({"g": ["a", "b"], "h": ["c", "d"]}, [])
    with pytest.raises(EmEvalsError, match="a and c were trained by different recipes"):
        groups_of(cards, {"g": ["a", "c"]})
    with pytest.raises(EmEvalsError, match="there are no numbers of 'e'"):
        groups_of(cards, {"g": ["a", "e"]})


def test_one_model_under_two_names_is_refused(trained):
    with pytest.raises(EmEvalsError, match=r"a and d are the same model \(card digest 1\): name it once"):
        groups_of([card("a", "1"), card("d", "1")], {})
