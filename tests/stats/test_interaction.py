"""Differences in differences: the published table, hand-worked means squares, and how often a null is called a cue."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from scipy import stats

from em_evals.stats.interaction import interaction, percentile
from em_evals.stats.means import holm
from tests.command import em_evals

SEED = 2026081301


def test_the_published_table(shared_data):
    path = shared_data / "conditional/interaction_26x3.csv"
    with path.open() as file:
        rows = [[float(row[f"seed_{i}"]) for i in range(3)] for row in csv.DictReader(file)]
    found = interaction(rows)
    assert 100 * found.estimate == pytest.approx(3.5828, abs=5e-5)
    assert [round(100 * one, 3) for one in found.by_seed] == [2.912, 4.155, 3.681]
    low, high = percentile(rows, SEED)
    assert abs(100 * low - 1.4091754692500573) < 1e-12 and abs(100 * high - 6.0687128367239560) < 1e-12
    told = em_evals("conditional", path, "--bootstrap-seed", SEED).stdout
    assert "3.5828 points over 26 prompts and 3 seeds" in told and "[1.4092, 6.0687]" in told
    low, high = found.interval()
    assert f"[{100 * low:.4f}, {100 * high:.4f}], Student's t" in told and "not the default" in told


def test_one_seed_is_students_t_over_prompts():
    values = [0.1, 0.4, -0.2, 0.3]
    found = interaction(values)
    known = stats.ttest_1samp(values, 0)
    assert found.p == pytest.approx(known.pvalue)
    assert found.interval() == pytest.approx(tuple(known.confidence_interval(0.95)))


def test_two_way_by_hand():
    # rows 2, 5; columns 2.5, 4.5; mean 3.5; residuals +-0.5: MS_rows = 2*(1.5**2*2)/1 = 9, MS_columns = 4, MS_rest = 1.
    found = interaction([[1.5, 2.5], [3.5, 6.5]])
    assert found.estimate == 3.5
    assert found.error == pytest.approx(np.sqrt((9 + 4 - 1) / 4))
    assert found.freedom == pytest.approx(144 / (81 + 16 + 1))


def test_a_table_that_says_nothing():
    assert np.isnan(interaction([[1.0, 2.0]]).p) and interaction([[np.nan], [1.0], [2.0]]).prompts == 2
    assert interaction([[0.0], [0.0]]).p == 1.0


def test_equal_prompts_show_as_much_as_their_number():
    two = interaction([[1.0], [1.0]])
    assert two.p == 0.5 and np.isnan(two.interval()[0]), "signs of two prompts"
    assert interaction([[0.3 - 0.2], [0.2 - 0.1]]).p == 0.5, "rounding is no spread"
    assert interaction([[1.0]] * 8).p == 2 / 2**8 and interaction([[1.0]] * 8).interval() == (1, 1)
    assert interaction([[1.0] * 3] * 8).p == 0.25, "three seeds"


def test_holm_is_applied_to_interactions():
    assert holm({"a": interaction([0.1, 0.2, 0.3]).p, "b": interaction([1.0, -1.0, 0.1]).p})["a"] < 0.2


@pytest.mark.simulation
def test_a_base_against_itself_has_false_cues_in_at_most_5_percent_of_studies():
    """200 studies of 24 prompts, 3 seeds and 5 cues without any effect: prompts and seeds vary."""
    chance = np.random.default_rng(7)
    false = 0
    for _ in range(200):
        found = {
            str(cue): interaction(
                chance.normal(0, 0.3, (24, 1))
                + chance.normal(0, 0.05, (1, 3))
                + chance.normal(0, 0.4, (24, 3))
            )
            for cue in range(5)
        }
        false += min(holm({cue: one.p for cue, one in found.items()}).values()) < 0.05
    assert false <= 10 + 2 * np.sqrt(200 * 0.05 * 0.95), "within two standard errors of 5%"
    assert false / 200 <= 0.05
