"""Differences and their tests, against published tables, other libraries, direct maximisation and brute force."""

import math
from bisect import bisect_right
from itertools import product

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import score_test_proportions_2indep

from em_evals.stats.bootstrap import StudentizedMean
from em_evals.stats.means import MeanContrast, holm
from em_evals.stats.paired import PairedContrast, interval_of, skewed
from em_evals.stats.proportions import Arm, effective, exact_p_higher, score
from em_evals.stats.rates import RateContrast

NAN = math.nan


def rates(before, after):
    return RateContrast(dict(enumerate(before)), dict(enumerate(after)))


# ---- rates ----


def test_one_question_gives_the_published_interval():
    """Newcombe (Statistics in Medicine 17, 1998), table II, method 6 (Miettinen and Nurminen), 56/70 against 48/80."""
    low, high = rates([(48, 80)], [(56, 70)]).interval(0.025)
    assert (round(low, 4), round(high, 4)) == (0.0528, 0.3382)


@pytest.mark.parametrize("bound", [-0.3, -0.02, 0.0, 0.01, 0.05, 0.4])
@pytest.mark.parametrize("counts", [(7, 90, 20, 100), (1, 300, 2, 250), (60, 70, 65, 80)])
def test_the_score_maximises_the_likelihood_under_its_bound(counts, bound):
    x0, n0, x1, n1 = counts

    def loss(p):
        q = p + bound
        return -(
            x0 * math.log(p) + (n0 - x0) * math.log(1 - p) + x1 * math.log(q) + (n1 - x1) * math.log(1 - q)
        )

    edges = max(0, -bound) + 1e-12, min(1, 1 - bound) - 1e-12
    p = optimize.minimize_scalar(loss, bounds=edges, method="bounded", options={"xatol": 1e-13}).x
    q, total = p + bound, n0 + n1
    spread = math.sqrt((q * (1 - q) / n1 + p * (1 - p) / n0) * total / (total - 1))
    expected = (x1 / n1 - x0 / n0 - bound) / spread
    found = score(bound, Arm(x0 / n0, n0), Arm(x1 / n1, n1))
    assert found == pytest.approx(expected, abs=1e-4)
    if bound == 0:
        other = score_test_proportions_2indep(x1, n1, x0, n0, value=0, compare="diff", correction=True)
        assert found == pytest.approx(other[0], abs=1e-2)


@pytest.mark.parametrize(("low", "high"), [(0.005, 0.055), (0.01, 0.03)])
@pytest.mark.parametrize("side", ["baseline", "candidate"])
def test_a_margin_is_kept_where_one_side_has_few_draws(side, low, high):
    """By all counts: of 104 draws against 8,000, the score test alone rejects 4.5 to 4.7% where 2.5% is promised."""
    few, many = 104, 8000

    def p(seldom, often):
        one, other = {"q": (seldom, few)}, {"q": (often, many)}
        return (
            RateContrast(one, other).p_below(high - low)
            if side == "baseline"
            else RateContrast(other, one).p_above(low - high)
        )

    rejected = sum(
        stats.binom.pmf(seldom, few, low)
        * stats.binom.cdf(
            bisect_right(range(many), 0.025, key=lambda often: p(seldom, often)) - 1, many, high
        )
        for seldom in range(12)
    )
    assert 0.015 < rejected < 0.028


def test_nothing_seen_is_not_plus_minus_zero():
    low, high = rates([(0, 100)] * 8, [(0, 100)] * 8).interval(0.025)
    assert -0.006 < low < -0.004 and 0.004 < high < 0.006
    assert rates([(0, 100)] * 8, [(0, 100)] * 8).p_below(0.02) < 0.001, "a margin of 2 points is ruled out"
    assert rates([(0, 10)] * 8, [(0, 10)] * 8).p_below(0.02) > 0.1, "80 draws cannot rule it out"


def test_one_question_is_fishers_test():
    for a, b, c, d in [(20, 100, 7, 90), (3, 800, 0, 800), (0, 5, 4, 6), (5, 5, 0, 5)]:
        expected = stats.fisher_exact([[a, b - a], [c, d - c]], alternative="greater").pvalue
        assert exact_p_higher([(a, b, c, d)]) == pytest.approx(expected, rel=1e-9)
        assert rates([(c, d)], [(a, b)]).p_above(0) == pytest.approx(expected, rel=1e-9)
        assert rates([(a, b)], [(c, d)]).p_below(0) == pytest.approx(expected, rel=1e-9)


def test_no_p_value_is_zero():
    """0 of 1,000 against 1,000 of 1,000: the chance is below the smallest float, and JSON said 0.0."""
    none, every = [(0, 1000)] * 2, [(1000, 1000)] * 2
    assert 0 < exact_p_higher([(1000, 1000, 0, 1000)] * 2) < 1e-300
    assert 0 < rates(none, every).p_above(0) < 1e-300 and 0 < rates(every, none).p_below(0) < 1e-300
    assert 0 < rates(none, every).p_above(0.02) < 1e-30


def test_several_questions_by_brute_force():
    tables = [(3, 5, 1, 4), (2, 6, 2, 6), (0, 3, 0, 5), (1, 2, 1, 7)]
    possible = [
        [
            (x, stats.hypergeom.pmf(x, n1 + n0, k1 + k0, n1))
            for x in range(max(0, k1 + k0 - n0), min(n1, k1 + k0) + 1)
        ]
        for k1, n1, k0, n0 in tables
    ]
    seen = sum(k1 for k1, *_ in tables)
    expected = sum(
        math.prod(p for _, p in outcome)
        for outcome in product(*possible)
        if sum(x for x, _ in outcome) >= seen
    )
    assert exact_p_higher(tables) == pytest.approx(expected, rel=1e-9)


def test_three_events_against_none_are_no_regression():
    """The score test's z is 1.73 and its p 0.04; the exact chance of 3 : 0 among three events is 1/8."""
    found = rates([(0, 100)] * 8, [(3, 100)] + [(0, 100)] * 7)
    assert found.p_above(0) == pytest.approx(stats.hypergeom.sf(2, 200, 3, 100))
    assert found.p_above(0) > 0.12 and stats.norm.sf(score(0, Arm(0, 800), Arm(3 / 800, 800))) < 0.05


def test_questions_that_differ_are_worth_more_draws_never_fewer():
    even, uneven = (
        [(42, 50)] * 8,
        [(50, 50), (50, 50), (20, 50), (48, 50), (18, 50), (50, 50), (50, 50), (50, 50)],
    )
    weights = np.full(8, 1 / 8)
    plain, better = effective(even, weights), effective(uneven, weights)
    assert plain.rate == better.rate == 0.84
    assert plain.draws == pytest.approx(400, rel=0.01)
    within = sum(k / 50 * (1 - k / 50) for k, _ in uneven) / 8
    assert 400 < better.draws < 0.84 * 0.16 / within * 400, (
        "a question of 50 : 0 does not claim to know its rate"
    )


def test_unequal_draws_are_compared_at_one_mix_of_questions():
    """Nothing changed but how often the bad question was drawn."""
    found = rates([(50, 100), (0, 100)], [(100, 200), (0, 50)])
    assert found.baseline == pytest.approx(found.candidate)  # 0.25 and 0.4 of each model's own draws
    assert found.estimate == pytest.approx(0) and found.p_above(0) > 0.4


def test_levels_and_difference_never_contradict_each_other():
    """Each model's own draws say 24% and 8.4%, where the common mix of questions says that the rate rose."""
    found = rates([(60, 100), (0, 150)], [(7, 10), (14, 240)])
    assert found.candidate > found.baseline
    assert found.candidate - found.baseline == pytest.approx(found.estimate)


@pytest.mark.parametrize("questions", [6, 7, 10, 24])
@pytest.mark.parametrize("draws", [1, 33, 100, 20_000])
def test_rates_of_nothing_and_of_everything_are_decided_on_counts(questions, draws):
    """Weights of 1/24 add up to 0.9999999999999999."""
    for events in (0, draws):
        found = rates([(events, draws)] * questions, [(events, draws)] * questions)
        assert found.estimate == 0 and found.baseline == float(events > 0)
        low, high = found.interval(0.025)
        # Both ends where the score is 1.96: 2 N b = 3.84 (2N - 1) / 2N, near enough.
        assert high == pytest.approx(-low, rel=1e-4) and 0.2 < high * questions * draws < 4
        assert found.p_below(0.9) < 0.05 and found.p_above(0) == 1


def test_unequal_draws_never_crash():
    chance = np.random.default_rng(3)
    for _ in range(300):
        draws = chance.integers(1, 40, size=(2, int(chance.integers(1, 25))))
        events = np.where(chance.random(draws.shape) < 0.5, draws, chance.integers(0, draws + 1))
        if chance.random() < 0.5:
            events = draws
        before, after = (
            [(int(k), int(n)) for k, n in zip(*side, strict=True)] for side in zip(events, draws, strict=True)
        )
        found = rates(before, after)
        low, high = found.interval(0.025)
        assert -1 <= low <= high <= 1 and 0 <= found.p_above(0.02) <= 1 and 0 <= found.p_below(0) <= 1


def test_questions_that_one_side_lacks_are_left_out():
    found = RateContrast({"a": (1, 10), "b": (9, 10)}, {"a": (1, 10), "c": (0, 0)})
    assert found.estimate == 0
    nothing = RateContrast({"a": (1, 10)}, {"b": (1, 10)})
    assert all(
        math.isnan(value) for value in (nothing.estimate, nothing.p_above(0), *nothing.interval(0.025))
    )


def test_the_interval_for_other_questions_is_students_and_never_narrower():
    before, after = [(2, 50), (4, 50), (0, 50), (8, 50)], [(5, 50), (20, 50), (0, 50), (9, 50)]
    differences = [(k1 - k0) / 50 for (k0, _), (k1, _) in zip(before, after, strict=True)]
    expected = stats.t.interval(0.95, 3, loc=np.mean(differences), scale=stats.sem(differences))
    found = rates(before, after)
    assert found.random_questions(0.025) == pytest.approx(expected)
    low, high = found.interval(0.025)
    assert expected[0] < low < high < expected[1]
    calm = rates([(0, 100)] * 8, [(0, 100)] * 8)
    assert calm.random_questions(0.025) == calm.interval(0.025)


def test_cohens_h():
    assert rates([(5, 100)], [(20, 100)]).effect == pytest.approx(
        2 * math.asin(math.sqrt(0.2)) - 2 * math.asin(math.sqrt(0.05))
    )


# ---- pairs ----


def paired(*differences):
    before = {str(i): 0.5 * i for i in range(len(differences))}
    return PairedContrast(before, {str(i): 0.5 * i + d for i, d in enumerate(differences)})


def test_numbers_are_students():
    values = [0.2, -1.5, 3.0, 0.7, 0.1]
    found = paired(*values)
    assert found.interval(0.025) == pytest.approx(
        stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    )
    assert found.p_above(0.1) == pytest.approx(stats.ttest_1samp(values, 0.1, alternative="greater").pvalue)
    assert found.p_below(0.1) == pytest.approx(stats.ttest_1samp(values, 0.1, alternative="less").pvalue)
    assert found.effect == pytest.approx(np.mean(values) / np.std(values, ddof=1))


def test_equal_models_pass_by_their_number_of_items():
    same = paired(*[0.0] * 20)
    assert same.interval(0.025) == (0, 0) and same.effect == 0
    assert same.p_below(0.01) == 0.5**20 and same.p_above(0) == 1
    few = paired(0.0, 0.0, 0.0)
    assert few.p_below(0.01) == 0.125 and math.isnan(few.interval(0.025)[0])


def test_equal_differences_are_no_certainty():
    """Two pairs that differ by 0.1 had p = 0, and rounding (0.3 - 0.2, 0.2 - 0.1) gave nine of them p = 5e-127."""
    found = PairedContrast({0: 0.1, 1: 0.2}, {0: 0.2, 1: 0.3}, binary=False)
    assert found.p_different == 0.5 and math.isnan(found.interval(0.025)[0])
    steps = {i: 0.1 * i for i in range(9)}
    found = PairedContrast(steps, {i: value + 0.1 for i, value in steps.items()}, binary=False)
    assert found.p_different == 2 / 2**9 and found.interval(0.025) == pytest.approx((0.1, 0.1))
    assert found.effect == math.inf
    one = PairedContrast({"a": 1.0}, {"a": 2.0})
    assert math.isnan(one.p_above(0)) and math.isnan(one.interval(0.025)[0])


def right_or_wrong(both, gained, lost, neither):
    before = [1.0] * both + [0.0] * gained + [1.0] * lost + [0.0] * neither
    after = [1.0] * both + [1.0] * gained + [0.0] * lost + [0.0] * neither
    return PairedContrast(dict(enumerate(before)), dict(enumerate(after)))


@pytest.mark.parametrize("bound", [-0.2, 0.03, 0.1])
@pytest.mark.parametrize(("gained", "lost"), [(3, 9), (1, 1), (6, 2)])
def test_the_paired_score_maximises_the_likelihood_under_its_bound(gained, lost, bound):
    """Tango's z: gained and lost have chances q + bound and q; q maximises the multinomial likelihood."""
    count = 40

    def loss(q):
        rest = 1 - 2 * q - bound
        return -(gained * math.log(q + bound) + lost * math.log(q) + (count - gained - lost) * math.log(rest))

    edges = max(0, -bound) + 1e-9, (1 - bound) / 2 - 1e-9
    q = optimize.minimize_scalar(loss, bounds=edges, method="bounded", options={"xatol": 1e-12}).x
    z = (gained - lost - count * bound) / math.sqrt(count * (2 * q + bound - bound**2))
    found = right_or_wrong(25, gained, lost, count - 25 - gained - lost)
    assert found.p_above(bound) == pytest.approx(stats.norm.sf(z), abs=1e-6)
    assert found.p_below(bound) == pytest.approx(stats.norm.cdf(z), abs=1e-6)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 6), (9, 3), (4, 4)])
def test_right_and_wrong_against_zero_is_mcnemars_exact_test(gained, lost):
    found = right_or_wrong(20, gained, lost, 5)
    two_sided = mcnemar([[20, lost], [gained, 5]], exact=True).pvalue
    assert min(1.0, 2 * min(found.p_above(0), found.p_below(0))) == pytest.approx(two_sided)


def test_agreement_on_few_items_is_not_beyond_doubt():
    low, high = right_or_wrong(20, 0, 0, 0).interval(0.025)
    reach = 1.959964**2 / (20 + 1.959964**2)
    assert (low, high) == pytest.approx((-reach, reach), abs=1e-6)


# ---- means, and several metrics ----


def test_means_add_their_errors():
    found = MeanContrast(0.5, 0.6, (0.03, 0.04), (100, 100))
    assert found.interval(0.025) == pytest.approx((0.1 - 1.959964 * 0.05, 0.1 + 1.959964 * 0.05), abs=1e-6)
    assert found.p_above(0) == pytest.approx(stats.norm.sf(2)) and found.effect == pytest.approx(
        0.1 / math.sqrt(0.125)
    )
    assert math.isnan(MeanContrast(0.5, 0.5, (0.0, 0.0), (9, 9)).p_below(0.1)), (
        "no error stated is no knowledge"
    )


def test_holm_is_statsmodels():
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5, "e": 0.012}
    expected = multipletests(list(p.values()), method="holm")[1]
    assert list(holm(p).values()) == pytest.approx(list(expected))
    assert holm({"a": 0.02, "b": NAN})["a"] == 0.02 and math.isnan(holm({"b": NAN})["b"])


# ---- skewed differences ----


def harmed(chance, items, share=0.05):
    """Differences with harm of 1 in this share of the items and little noise elsewhere: the mean harm is the share."""
    values = chance.normal(0, 0.02, items) + (chance.random(items) < share)
    return PairedContrast(
        dict.fromkeys(map(str, range(items)), 0.0), {str(i): float(v) for i, v in enumerate(values)}
    )


@pytest.mark.simulation
def test_harm_in_a_twentieth_of_the_pairs_passes_at_most_as_often_as_promised():
    """Mean harm is exactly the margin of 0.05; Student's t passes about 10% at a nominal 2.5%."""
    chance, passed, t_passed = np.random.default_rng(5), 0, 0
    for _ in range(150):
        found = harmed(chance, 100)
        passed += found.p_below(0.05) <= 0.025
        differences = list(found.after.values())
        t_passed += stats.ttest_1samp(differences, 0.05, alternative="less").pvalue <= 0.025
    assert passed <= 9 and t_passed >= 9, "2.5% of 150 is 4; above 9 comes once in 100"


def test_skewed_differences_get_the_studentized_bootstrap():
    found = harmed(np.random.default_rng(6), 100)
    values = list(found.after.values())
    expected = StudentizedMean.of(values)
    assert skewed(np.array(values)) and found.interval(0.025) == expected.interval(0.025) == interval_of(
        values
    )
    assert found.p_below(0.2) == expected.p_below(0.2) and found.p_above(0.01) == expected.p_above(0.01)
    low, high = found.interval(0.025)
    assert high - found.estimate > 1.2 * (found.estimate - low), "the harm may be larger, hardly smaller"
    even = np.linspace(-1, 1, 100)
    assert not skewed(even) and not skewed(np.ones(50)) and not skewed(np.array([0.0, 0.0, 1.0]))
