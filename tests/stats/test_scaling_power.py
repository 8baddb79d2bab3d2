"""Power of a set of bases: the test is that of the mixed model, its level holds, its power is the textbook's."""

import numpy as np
import pytest
from scipy import stats

from em_evals.stats import scaling, scaling_power
from em_evals.stats.scaling import Cell
from em_evals.stats.scaling_power import PlannedBase, World, power


def ladders(families=3, each=6):
    """Checkpoints of pretrainings: P fixed, T growing."""
    return [
        PlannedBase(str(family), 10.0 ** (9 + family), tokens)
        for family in range(families)
        for tokens in np.geomspace(1e11, 4e12, each)
    ]


def test_the_test_is_the_mixed_model_s_where_bases_have_as_many_organisms():
    chance = np.random.default_rng(0)
    bases = ladders()
    columns, with_size = scaling_power._columns(bases)
    assert not with_size
    cells, logits = [], []
    for i, base in enumerate(bases):
        own = -2 + 0.8 * np.log10(base.tokens / 1e12) + chance.normal(0, 0.3)
        runs = []
        for run in range(3):
            events = int(chance.binomial(2000, 1 / (1 + np.exp(-own - chance.normal(0, 0.3)))))
            cells.append(
                Cell(str(i), base.family, f"{i}.{run}", str(run), events, 2000, base.parameters, base.tokens)
            )
            runs.append(np.log((events + 0.5) / (2000 - events + 0.5)))
        logits.append(np.mean(runs))
    p = scaling_power.tests(columns, np.array([logits]))[0]
    within = scaling.predictor("log T", cells).within_family
    assert p == pytest.approx(within.p, rel=0.3)
    assert scaling.partial(cells).slopes["log T"].value == pytest.approx(within.value, rel=1e-6)


def test_the_level_holds_and_power_is_that_of_the_noncentral_t():
    bases, world = ladders(), World(base_spread=0.3, run_spread=0.3)
    found = power(bases, runs=4, draws=2000, world=world, studies=4000, slopes=(0.0, 0.5, 1.0))
    assert found.freedom == 18 - 3 - 1
    assert found.power[0] == pytest.approx(0.05, abs=0.012)
    column = scaling_power._columns(bases)[0][:, 0]
    for slope, value in zip((0.5, 1.0), found.power[1:], strict=True):
        # Binomial noise of a run's logit is 1 / (n p (1 - p)).
        error = np.sqrt((0.3**2 + (0.3**2 + 1 / (2000 * 0.1 * 0.9)) / 4) / (column @ column))
        limit = stats.t.ppf(0.975, 14)
        right = stats.nct.sf(limit, 14, slope / error) + stats.nct.cdf(-limit, 14, slope / error)
        assert value == pytest.approx(right, abs=0.03)


def test_what_a_design_cannot_find_is_refused():
    with pytest.raises(ValueError, match="do not vary within any family"):
        power([PlannedBase("f", 10.0**i, 1e12) for i in range(8, 12)], 2, 100, World())
    with pytest.raises(ValueError, match="T does not vary apart from P"):
        power([PlannedBase("f", 10.0**i, 100 * 10.0**i) for i in range(8, 12)], 2, 100, World())
    with pytest.raises(ValueError, match="no degree of freedom"):
        power([PlannedBase("f", 1e9, 1e12), PlannedBase("f", 1e9, 2e12)], 2, 100, World())


def test_a_ladder_of_checkpoints_gets_a_verdict_on_tokens():
    chance = np.random.default_rng(1)

    def cells(slope):
        found = []
        for i, base in enumerate(ladders()):
            own = -2 + slope * np.log10(base.tokens / 1e12) + chance.normal(0, 0.1)
            for run in range(3):
                events = int(chance.binomial(800, 1 / (1 + np.exp(-own))))
                found.append(
                    Cell(str(i), base.family, f"{i}.{run}", "d", events, 800, base.parameters, base.tokens)
                )
        return found

    planted = cells(1.0)
    assert scaling.is_ladder(planted) and not scaling.design(planted).reasons
    assert scaling.partial(planted).kept == ("log T",)
    verdicts = [scaling.partial(cells(0.0)).kept for _ in range(20)]
    assert sum(map(bool, verdicts)) <= 4
