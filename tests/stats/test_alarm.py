"""Alarms learned from few draws: the fit by hand, label noise undone, onsets."""

import math

import numpy as np
import pytest
from scipy import optimize, special

from em_evals.stats import alarm


def planted(rows, draws, chance, effect=2.0):
    """Features, true rates and counts; the first feature carries the rate."""
    features = chance.normal(size=(rows, 3))
    rates = special.expit(-3 + effect * features[:, 0])
    return features, rates, chance.binomial(draws, rates).astype(float), np.full(rows, float(draws))


def test_the_fit_is_the_maximum_of_its_likelihood():
    features, _, events, draws = planted(60, 24, np.random.default_rng(0))
    found = alarm.fit(features, events, draws)
    scaled = (features - features.mean(0)) / features.std(0)

    def loss(values):
        p = special.expit(values[0] + scaled @ values[1:])
        told = (events * np.log(p) + (draws - events) * np.log1p(-p)).sum() / 24
        first = special.expit(values[0])
        return -told + (values[1:] ** 2).sum() / 2 - 0.5 * (np.log(first) + np.log1p(-first))

    by_hand = optimize.minimize(
        loss, np.zeros(4), method="Nelder-Mead", options={"maxiter": 20000, "xatol": 1e-8, "fatol": 1e-12}
    ).x
    assert [found.intercept, *found.weights] == pytest.approx(by_hand, abs=1e-3)
    assert found.logit(features[:2]) == pytest.approx(by_hand[0] + scaled[:2] @ by_hand[1:], abs=5e-3)


def test_no_event_at_all_has_a_fit():
    found = alarm.fit(np.ones((5, 1)), np.zeros(5), np.full(5, 10.0))
    assert special.expit(found.logit(np.ones((1, 1))))[0] < 0.2


def test_a_label_of_many_draws_is_right_and_one_of_few_is_not():
    chance = np.random.default_rng(3)
    for draws, least, most in ((4000, 0.0, 0.02), (24, 0.05, 0.3)):
        _, rates, events, number = planted(300, draws, chance)
        predicted = special.expit(special.logit(rates) + chance.normal(size=300))
        above = alarm.above(predicted, events, number, 0.05)
        labeled, truly = events > 0.05 * number, rates > 0.05
        wrong = np.where(labeled, 1 - above, above).mean()
        assert least <= wrong <= most and wrong == pytest.approx((labeled != truly).mean(), abs=0.04)


def test_scores_against_few_draws_are_those_against_the_true_rates():
    chance = np.random.default_rng(4)
    naive, undone, true = [], [], []
    for _ in range(4):
        _, rates, events, draws = planted(300, 12, chance)
        predicted = special.expit(special.logit(rates) + chance.normal(size=300))
        above = alarm.above(predicted, events, draws, 0.05)
        for kept, one in ((naive, events > 0.05 * draws), (undone, above), (true, rates > 0.05)):
            scored = alarm.scores(predicted, np.asarray(one, dtype=float), 0.05)
            kept.append((scored.auroc, scored.fpr, scored.fnr))
    before, after = (np.abs(np.mean(one, 0) - np.mean(true, 0)) for one in (naive, undone))
    assert before.min() > 0.03 and after.max() < 0.03


def test_the_auroc_of_labels_is_scikit_learn_s():
    metrics = pytest.importorskip("sklearn.metrics")
    chance = np.random.default_rng(5)
    predicted, labels = chance.integers(0, 8, 60) / 10, chance.integers(0, 2, 60).astype(float)
    found = alarm.scores(predicted, labels, 0.35)
    assert found.auroc == pytest.approx(metrics.roc_auc_score(labels, predicted))
    assert found.fpr == pytest.approx((predicted[labels == 0] > 0.35).mean())
    assert found.fnr == pytest.approx((predicted[labels == 1] <= 0.35).mean())
    assert math.isnan(alarm.scores(np.ones(3), np.zeros(3), 0.5).auroc)


def test_an_onset_is_not_moved_by_one_bad_draw():
    steps, draws = np.arange(6.0) * 10, np.full(6, 50.0)
    assert alarm.onset(steps, np.array([0, 4, 0, 0, 10, 20.0]), draws, 0.05) == 40
    assert math.isnan(alarm.onset(steps, np.zeros(6), draws, 0.05))


def test_an_onset_leaves_out_steps_without_draws():
    steps, draws = np.array([10.0, 20.0, 30.0]), np.array([10.0, 0.0, 10.0])
    assert alarm.onset(steps, np.array([0.0, 0.0, 5.0]), draws, 0.05) == 30
    assert math.isnan(alarm.onset(steps, np.zeros(3), np.zeros(3), 0.05))
