"""The committed simulation in small: the gate errs as rarely as it says, finds what it should, and its intervals cover.

benchmarks/gate_calibration.py runs it with 2,000 repetitions; benchmarks/results/gate_calibration.json is what it found.
"""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from scipy import stats

pytestmark = pytest.mark.simulation

FOLDER = Path(__file__).parents[2] / "benchmarks"
REPETITIONS = 200
FEW_EVENTS = {
    "same, 24 questions, 120 draws",
    "same, rate 0",
    "same, rate 0.1%",
    "same, rate 0.1%, all in one question",
    "same, other questions",
}
"""At most one EM answer is expected of a model, or most questions have none: counts are too few to come out at
95% exactly, and coverage is above, never below."""


@pytest.fixture(scope="module")
def calibration():
    """The benchmark as a module."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("gate_calibration", FOLDER / "gate_calibration.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["gate_calibration"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("gate_calibration", None)


@pytest.fixture(scope="module")
def scenarios(calibration, shared_data):
    base = calibration.Population.read(shared_data / "judged" / "qwen25_coder_7b_base.csv")
    return {scenario.name: scenario for scenario in calibration.scenarios(base)}


def most(share):
    """Events that a share at most this large makes with a chance of one in a thousand or more."""
    return int(stats.binom.ppf(0.999, REPETITIONS, share)) / REPETITIONS


def test_the_population_is_the_judged_answers(scenarios):
    truth = scenarios["same, 24 questions"].before.truth()
    assert truth["em_rate"] == pytest.approx(8 / 2400) and truth["coherent_share"] == pytest.approx(
        2026 / 2400
    )
    planted = scenarios["0.5% to 5%, all in three questions"].after
    assert planted.truth()["em_rate"] == pytest.approx(0.05) and (planted.chances[:, 0] > 0).sum() == 3
    assert planted.truth()["coherent_share"] == pytest.approx(2026 / 2400)


@pytest.mark.parametrize("name", ["same, 24 questions", "same, rate 5%, all in three questions"])
def test_an_unchanged_model_is_rarely_called_worse(calibration, scenarios, name):
    found = calibration.simulate(scenarios[name], REPETITIONS, seed=1)
    assert found["verdicts"]["regression"]["share"] <= most(calibration.POLICY.alpha)
    for metric in calibration.METRICS:
        assert found["coverage"][metric] >= 1 - most(0.05)
    assert found["coverage"]["coherent_share"] < 1 - stats.binom.ppf(0.001, REPETITIONS, 0.05) / REPETITIONS


def test_a_planted_rise_is_found(calibration, scenarios):
    found = calibration.simulate(scenarios["0.5% to 5%"], REPETITIONS, seed=1)
    assert found["verdicts"]["regression"]["share"] >= 0.9


def test_harm_of_just_the_margin_rarely_passes(calibration, scenarios):
    found = calibration.simulate(scenarios["worse by exactly the margin"], REPETITIONS, seed=1)
    assert found["em_rate_passes"]["share"] <= most(calibration.POLICY.alpha)


def test_the_committed_result_keeps_what_the_gate_promises(calibration):
    kept = json.loads(calibration.RESULT.read_text(encoding="utf-8"))
    assert kept["alpha"] == calibration.POLICY.alpha
    found = {entry["scenario"]: entry for entry in kept["scenarios"]}
    assert all(entry["repetitions"] == 2000 for entry in found.values())
    for name, entry in found.items():
        if name.startswith("same"):
            assert entry["verdicts"]["regression"]["limits"][0] <= kept["alpha"], name
        assert min(entry["coverage"].values()) >= 0.93, name
        # Nor are intervals too wide, where there are events to count.
        metrics = ["coherent_share"] if name in FEW_EVENTS else calibration.METRICS
        assert max(entry["coverage"][metric] for metric in metrics) <= 0.975, name
    assert found.keys() > FEW_EVENTS
    for name in ("0.5% to 5%", "0.5% to 5%, all in three questions", "0.5% to 5%, the 8 plain questions"):
        assert found[name]["verdicts"]["regression"]["share"] >= 0.9
    assert found["worse by exactly the margin"]["em_rate_passes"]["limits"][0] <= kept["alpha"]
