"""How separated kinds of concepts are: planted angles are recovered, and the relation across bases beside permutations."""

from dataclasses import replace

import numpy as np
import pytest

from em_evals.content.direction_folds import FOLDS, Folds
from em_evals.content.direction_summary import chosen_layer
from em_evals.content.directions import Direction
from em_evals.errors import EmEvalsError
from em_evals.interp.traits.map import trait_map
from em_evals.interp.traits.separation import across_bases
from em_evals.results import records
from em_evals.results.records.base import Measured
from em_evals.results.records.traits import Separation
from tests.command import em_evals

WIDTH = 96


def made(core, seed, kind, noise):
    chance = np.random.default_rng(seed)
    vectors = core + noise * chance.normal(size=(FOLDS, WIDTH)) / np.sqrt(WIDTH)
    folds = Folds(
        vectors[:, None].astype("f4"),
        chance.normal(size=(FOLDS, 1, WIDTH)).astype("f4"),
        np.ones(FOLDS, "f4"),
    )
    told = {"kind": kind, "reliability": [0.9], "base": "b"}
    return Direction(vectors.mean(0)[None], np.zeros((1, WIDTH)), np.ones(1), told, folds)


def concepts(cosine, noise):
    """Three harmful traits (the last one opposite) and two narrow concepts at a cosine to their common axis."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, 6)))[0].T
    own = [sign * (np.sqrt(0.8) * axes[0] + np.sqrt(0.2) * axes[1 + i]) for i, sign in enumerate((1, 1, -1))]
    # What is at this cosine to the common axis is at sqrt(0.8) of it to each trait.
    away = [cosine / np.sqrt(0.8) * axes[0] + np.sqrt(1 - cosine**2 / 0.8) * axes[4 + i] for i in range(2)]
    given = {f"em{i}": made(one, i, "em", noise) for i, one in enumerate(own)}
    return given | {f"advice{i}": made(one, 10 + i, "", noise) for i, one in enumerate(away)}


@pytest.mark.parametrize("noise", [0.1, 2.0])
@pytest.mark.parametrize("cosine", [0.2, 0.7])
def test_the_planted_angle_is_found_whatever_the_noise(cosine, noise):
    found = trait_map(concepts(cosine, noise), 0, narrow=["advice0", "advice1"])
    (one,) = found.separations
    assert (one.one, one.other) == ("narrow", "em") and found.kinds["advice0"] == "narrow"
    assert one.index.value == pytest.approx(1 - cosine, abs=0.1) and one.index.n == FOLDS
    assert one.index.interval[0] < 1 - cosine < one.index.interval[1] or noise == 0.1
    assert one.within.value == pytest.approx(0.2, abs=0.1)
    raw = np.mean(
        [abs(pair.cosine) for pair in found.cosines if {pair.one[:2], pair.other[:2]} == {"em", "ad"}]
    )
    assert noise == 0.1 or cosine == 0.2 or 1 - raw > one.index.value + 0.05, (
        "raw cosines would look separated by noise alone"
    )


def test_traits_with_questions_of_their_own_are_compared():
    given = {}
    for number, (name, one) in enumerate(concepts(0.3, 0.5).items()):
        empty = (np.arange(FOLDS) + 3 * number) % FOLDS < 5  # no fold is filled in all five
        given[name] = replace(one, folds=replace(one.folds, weights=np.where(empty, 0, one.folds.weights)))
    (found,) = trait_map(given, 0, narrow=["advice0", "advice1"]).separations
    assert found.index.value == pytest.approx(0.7, abs=0.1) and found.index.n == FOLDS - 5
    assert found.index.interval[0] < found.index.value < found.index.interval[1]


def test_the_layer_is_one_at_which_system_prompts_agree():
    given = {}
    for name, one in concepts(0.3, 0.5).items():
        told = {**one.metadata, "reliability": [0.99, 0.97, 0.9], "prompt_cosine": [-0.1, 0.5, 0.3]}
        vectors = np.repeat(one.vectors, 3, axis=0)
        given[name] = Direction(vectors, np.zeros_like(vectors), np.ones(3), told, None)
    assert trait_map(given).layer == 1 and chosen_layer(given["em0"]) == 1
    no_prompts = replace(
        given["em0"], metadata={**given["em0"].metadata, "prompt_cosine": [-0.1, -0.5, -0.3]}
    )
    assert chosen_layer(no_prompts) == 0


def test_a_name_that_is_not_there_is_told():
    with pytest.raises(EmEvalsError, match="no 'advise0' among these directions; did you mean 'advice0'"):
        trait_map(concepts(0.2, 0.1), 0, narrow=["advise0"])


def one_map(base, index):
    plain = trait_map(concepts(0.2, 0.1), 0)
    measured = Measured(value=index, interval=(index - 0.1, index + 0.1), n=16)
    return plain.model_copy(
        update={
            "base": base,
            "separations": [Separation(one="narrow", other="em", index=measured, within=measured)],
        }
    )


def test_separation_is_related_to_rates_across_bases(workdir):
    maps = [one_map(f"base{i}", 0.1 * i) for i in range(1, 8)]
    rates = {f"base{i}": 0.3 - 0.03 * i for i in range(1, 8)}
    found = across_bases(maps, rates, "narrow", 0)
    assert found.r == -1 and found.claim.verdict == "specific" and len(found.bases) == 7
    shuffled = dict(zip(rates, np.random.default_rng(1).permutation(list(rates.values())), strict=True))
    assert across_bases(maps, shuffled, "narrow", 0).claim.verdict == "not specific"
    few = across_bases(maps[:4], rates, "narrow", 0)
    assert few.r is None and few.claim.verdict == "not estimable"
    with pytest.raises(EmEvalsError, match="no rate of base1"):
        across_bases(maps, {"x": 1.0}, "narrow", 0)
    with pytest.raises(EmEvalsError, match="no separation of `style` directions"):
        across_bases(maps, rates, "style", 0)
    with pytest.raises(EmEvalsError, match="two maps are of the base base1"):
        across_bases([maps[0], maps[0]], rates, "narrow", 0)
    for number, one in enumerate(maps):
        records.write(one, workdir / f"{number}.json")
    (workdir / "rates.csv").write_text(
        "base,value\n" + "".join(f"{name},{value}\n" for name, value in rates.items())
    )
    done = em_evals("trait", "bases", *(f"{i}.json" for i in range(7)), "--rates", "rates.csv")
    assert done.returncode == 0 and "rank correlation -1.00 over 7 bases" in done.stdout, done.stderr
    assert records.read(workdir / "trait-bases.json") == found
