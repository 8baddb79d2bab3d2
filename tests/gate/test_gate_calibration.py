"""The committed simulation in small: the gate errs as rarely as it says, finds what it should, and its intervals cover.

benchmarks/gate_calibration.py runs it in full; benchmarks/results/gate_calibration.json is what it found.
"""

import json

import gate_calibration
import pytest
from scipy import stats

pytestmark = pytest.mark.simulation

REPETITIONS = 60


@pytest.fixture(scope="module")
def scenarios(shared_data):
    base = gate_calibration.Population.read(shared_data / "judged" / "qwen25_coder_7b_base.csv")
    return {scenario.name: scenario for scenario in gate_calibration.scenarios(base)}


@pytest.fixture(scope="module")
def kept():
    return json.loads(gate_calibration.RESULT.read_text(encoding="utf-8"))


def most(share, repetitions=REPETITIONS):
    """Events that a share at most this large makes with a chance of one in a thousand or more."""
    return int(stats.binom.ppf(0.999, repetitions, share)) / repetitions


def test_the_population_is_the_judged_answers(scenarios):
    truth = scenarios["same, 24 questions"].before.truth()
    assert truth["em_rate"] == pytest.approx(8 / 2400)
    planted = scenarios["0.5% to 5%, all in three questions"].after
    assert planted.truth()["em_rate"] == pytest.approx(0.05) and (planted.chances[:, 0] > 0).sum() == 3
    margin = scenarios["at the margin, all in one of 24 questions"]
    assert margin.after.truth()["em_rate"] - margin.before.truth()["em_rate"] == pytest.approx(0.02)
    refusing = scenarios["same, a tenth refused"].before
    assert refusing.chances[:, 3].mean() > 0.1 and refusing.chances.sum(axis=1) == pytest.approx(1)


def test_draws_of_all_looks_add_up(scenarios):
    looks = gate_calibration._looks(
        scenarios["same, 24 questions, 11 looks"], gate_calibration.np.random.default_rng(0)
    )
    totals = [side.evidence["freeform/first_plot"].draws("em_rate") for side, _ in looks]
    assert totals == [100 * (look + 1) for look in range(11)]


def test_a_planted_rise_is_found(scenarios):
    found = gate_calibration.simulate(scenarios["0.5% to 5%"], REPETITIONS, seed=1)
    assert found["verdicts"]["regression"]["share"] >= 0.9


@pytest.mark.full
def test_harm_of_just_the_margin_rarely_passes_over_eleven_looks(scenarios):
    found = gate_calibration.simulate(scenarios["at the margin, 11 looks"], REPETITIONS // 2, seed=1)
    assert found["ever"]["metric passes"]["share"] <= most(gate_calibration.POLICY.alpha, REPETITIONS // 2)


def test_the_committed_result_keeps_what_the_gate_promises(kept, scenarios):
    """Shares are estimates: a promise is broken where their lower 95% limit is above it."""
    alpha = kept["alpha"]
    assert alpha == gate_calibration.POLICY.alpha
    found = {entry["scenario"]: entry for entry in kept["scenarios"]}
    assert found.keys() == scenarios.keys()
    for name, entry in found.items():
        ever = entry["ever"]
        if name.startswith("same"):
            assert ever["regression"]["limits"][0] <= alpha, name
        if name.startswith("at the margin"):
            assert ever["metric passes"]["limits"][0] <= alpha, name
        if entry["scope"] == "questions":
            assert all(share >= 0.92 for share in entry["coverage"].values()), name
    assert {entry["looks"] for entry in found.values()} == {1, 11}
    assert {entry["scope"] for entry in found.values()} == {"questions", "population"}
    assert {3, 5, 13} <= {entry["metrics"] for entry in found.values()}


def test_the_committed_result_states_power(kept):
    found = {entry["scenario"]: entry for entry in kept["scenarios"]}
    for name in (
        "0.5% to 5%",
        "0.5% to 5%, 13 metrics",
        "0.5% to 5%, all in three questions",
        "0.5% to 5%, population, 24 questions",
    ):
        assert found[name]["verdicts"]["regression"]["share"] >= 0.9, name
    for name in ("same, 24 questions", "same, population, 240 questions"):
        assert found[name]["verdicts"]["pass"]["share"] >= 0.8, name
