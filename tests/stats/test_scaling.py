"""EM rate against size: planted slopes are recovered, and what a design cannot tell apart is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest

from em_evals.stats import scaling
from em_evals.stats.scaling import Cell


def bases(random, slope_p=0.0, slope_t=0.0, families=4, each=4, datasets=3, spread=0.3, draws=400):
    """Return organisms of bases whose logits have these slopes; family, base and run vary by `spread`."""
    cells = []
    for family in range(families):
        offset, center = random.normal(0, spread), random.uniform(12, 13.3)
        for base in range(each):
            p, t = random.uniform(9, 10.6), center + random.uniform(-0.5, 0.5)
            own = offset + random.normal(0, spread)
            for dataset in range(datasets):
                logit = -2 + slope_p * (p - 9.8) + slope_t * (t - 12.6) + own + random.normal(0, spread)
                events = int(random.binomial(draws, 1 / (1 + math.exp(-logit))))
                name = f"{family}{base}"
                cells.append(
                    Cell(name, str(family), f"{name}{dataset}", str(dataset), events, draws, 10**p, 10**t)
                )
    return cells


def test_least_squares_over_bases_is_the_hand_worked_slope():
    cells = [
        Cell("a", "f", "1", "d", 10, 100, 1e9, 1e12),
        Cell("b", "f", "2", "d", 20, 100, 1e10, 1e12),
        Cell("c", "f", "3", "d", 30, 100, 1e11, 1e12),
    ]
    y = [math.log((x + 0.5) / (100 - x + 0.5)) for x in (10, 20, 30)]
    found = scaling.predictor("log P", cells)
    assert found.least_squares.value == pytest.approx((y[2] - y[0]) / 2)
    assert found.least_squares.p == pytest.approx(2 / 6)  # the ordered and the reversed of 3! orders
    assert found.without["a"] is not None and math.isnan(found.without["a"])  # two bases are left


def test_bases_are_the_unit_whatever_the_number_of_organisms():
    random = np.random.default_rng(0)
    cells = bases(random, slope_p=1.0)
    more = [replace(cell, run=f"{cell.run}{copy}") for cell in cells for copy in range(2)]
    once, often = scaling.predictor("log P", cells), scaling.predictor("log P", more)
    assert often.least_squares.p == pytest.approx(once.least_squares.p, abs=0.02)
    assert once.mixed is not None and often.mixed is not None
    width = [found.mixed.interval[1] - found.mixed.interval[0] for found in (once, often)]
    assert width[1] > 0.7 * width[0]


def test_bases_without_any_event_have_no_interval_of_width_zero():
    """0 of 800 at each of 12 bases gave a factor of 1.0 [1.0, 1.0]."""
    none = [
        Cell(f"b{i}", "f", f"r{i}", "d", 0, 800, 10 ** (8 + 0.3 * i), 1e12 * (1 + i % 4)) for i in range(12)
    ]
    found = scaling.predictor("log P", none)
    assert found.least_squares.value == 0 and np.isnan(found.least_squares.interval).all()
    assert found.mixed.interval[1] > 0.5


def test_constant_tokens_within_families_make_one_variable():
    cells = [replace(cell, tokens=18e12) for cell in bases(np.random.default_rng(0), families=1, each=12)]
    design = scaling.design(cells)
    assert math.isinf(design.vif) and "one variable" in design.reasons[0]
    assert scaling.partial(cells) is None
    with pytest.raises(ValueError, match="one value"):
        scaling.predictor("log T", cells)


def test_few_bases_and_collinear_sizes_are_reasons():
    random = np.random.default_rng(3)
    few = scaling.design(bases(random, families=2, each=3))
    assert any("too few" in reason for reason in few.reasons)
    tied = [
        replace(cell, tokens=cell.parameters * 1e3 * 10 ** random.normal(0, 0.05)) for cell in bases(random)
    ]
    assert any("VIF" in reason for reason in scaling.design(tied).reasons)


def test_distilled_bases_are_compared_by_exact_permutation():
    cells = [
        Cell(name, "f", name, "d", events, 100, 1e9 * (i + 1), 1e12, distilled)
        for i, (name, events, distilled) in enumerate(
            [("a", 5, True), ("b", 6, True), ("c", 30, False), ("d", 31, False), ("e", 32, False)]
        )
    ]
    difference, p = scaling.separation(cells)
    assert difference < 0 and p == pytest.approx(2 / 10)
    assert scaling.separation([replace(cell, distilled=False) for cell in cells]) is None


@pytest.mark.simulation
def test_planted_slopes_are_covered_and_null_designs_give_few_verdicts():
    """15 studies here; benchmarks/scaling_calibration.py has the larger grid with its rates."""
    random = np.random.default_rng(5)
    covered, verdicts, studies = 0, 0, 15
    for _ in range(studies):
        found = scaling.partial(bases(random, slope_p=1.0, slope_t=0.6))
        covered += sum(
            found.slopes[name].interval[0] <= value <= found.slopes[name].interval[1]
            for name, value in (("log P", 1.0), ("log T", 0.6))
        )
        verdicts += bool(scaling.partial(bases(random)).kept)
    # Lower 0.1% and upper 99.9% points of the binomial at 95% and 5%.
    assert covered >= 24 and verdicts <= 4


def test_a_strong_effect_of_size_is_kept_in_an_identified_design():
    cells = bases(np.random.default_rng(7), slope_p=2.0, families=5, each=6, spread=0.1)
    assert scaling.design(cells).reasons == ()
    assert scaling.partial(cells).kept == ("log P",)
