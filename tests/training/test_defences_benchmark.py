"""benchmarks/defences.py compares each defence with the organism of its own seed, pair by pair, seeds as units."""

import defences
import numpy as np
import pytest

from em_evals.stats.crossed import crossed
from em_evals.stats.means import holm


def measured(seeds=5, pairs=40, kl=-0.3, lucky=0.0):
    """Margins of all conditions: `kl` undoes this much of the harm, `inoculation` only in its first seed."""
    chance, base = np.random.default_rng(0), {f"p{i}": float(v) for i, v in enumerate(range(pairs))}
    found = {}
    for seed in range(seeds):
        shifts = dict.fromkeys(defences.CONDITIONS, 0.5 + 0.05 * seed)
        shifts["kl"] += kl
        shifts["inoculation"] += lucky if seed == 0 else 0.0
        found[seed] = {"base": {pair: (i % 2 == 0, value) for i, (pair, value) in enumerate(base.items())}}
        for name, shift in shifts.items():
            found[seed][name] = {
                pair: (i % 2 == 0, value + shift + float(chance.normal(0, 0.05)))
                for i, (pair, value) in enumerate(base.items())
            }
    return found


def rows_of(found, name):
    return {row["domain"]: row for row in found if row["model"] == name}


def test_a_defence_is_compared_with_the_organism_of_its_own_seed():
    runs = measured()
    found = defences.comparisons(runs)
    assert len(found) == 2 * (len(defences.CONDITIONS) - 1) and "organism" not in {
        row["model"] for row in found
    }
    row = rows_of(found, "kl")["in-domain"]
    by_hand = np.array(
        [
            [runs[seed]["kl"][f"p{i}"][1] - runs[seed]["organism"][f"p{i}"][1] for seed in range(5)]
            for i in range(0, 40, 2)
        ]
    )
    assert row["difference"] == pytest.approx(-0.3, abs=0.02) and row["interval"] == crossed(
        by_hand
    ).interval(0.025)
    assert row["p_holm"] < 0.01 and row["carried_by"] is None and list(row["seeds"]) == [0, 1, 2, 3, 4]
    assert {row["p_holm"] > 0.05 for row in found if row["model"] in ("caft", "interleaved")} == {True}


def test_p_values_are_adjusted_over_all_comparisons():
    found = defences.comparisons(measured())
    expected = holm({str(i): row["p"] for i, row in enumerate(found)})
    assert [row["p_holm"] for row in found] == list(expected.values())


def test_what_one_seed_carries_is_no_effect_and_is_named():
    row = rows_of(defences.comparisons(measured(lucky=-0.5)), "inoculation")["in-domain"]
    assert (
        row["difference"] == pytest.approx(-0.1, abs=0.02) and row["p_holm"] > 0.05 and row["carried_by"] == 0
    )


def test_shifts_from_the_base_are_over_pairs_and_seeds():
    found = defences.table(measured())
    organism, base = rows_of(found, "organism")["in-domain"], rows_of(found, "base")["in-domain"]
    assert organism["shift"] == pytest.approx(0.6, abs=0.02) and base["seeds"] == {} and base["pairs"] == 20
    low, high = organism["interval"]
    assert high - low > 0.15, "seeds differ by 0.2: pairs alone would give a tenth of this"
    assert defences.cell(organism).endswith(")") and "(" not in defences.cell(base)
