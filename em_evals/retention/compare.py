"""What did it cost? Item by item against a baseline, with intervals, per task and over all.

The same items were asked of both models, so the comparison is paired: what both get right, or both get wrong,
says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from em_evals.errors import EmEvalsError
from em_evals.results.lm_eval import ModelResults, TaskScores
from em_evals.results.records import ACCURACIES, RetainedModel, Retention, TaskDifference
from em_evals.stats.intervals import CONFIDENCE, Interval

OVERALL = "overall"
_RESAMPLES, _SEED = 9999, 0
_AT_ONCE = 2**20
"""Resampled scores in memory at a time: all resamples of a thousand items took 600 MB."""


@dataclass(frozen=True)
class Difference:
    """A mean paired difference (other - base) with its 95% interval and the p-value of no difference."""

    value: float
    interval: Interval
    p: float


def paired(base: Sequence[float], other: Sequence[float]) -> Difference:
    """Compare two models on the same items.

    Right-or-wrong scores: the interval is Bonett and Price's adjusted Wald (J. Educ. Behav. Stat. 37, 2012), which
    holds for few items and where no item differs; p is McNemar's exact test. Other scores: percentiles of the paired
    bootstrap and a sign-flip permutation test, both with a fixed seed.

    Args:
        base: each item's score by the baseline.
        other: each item's score by the model, in the same order.

    Raises:
        EmEvalsError: no items.
    """
    first, second = np.asarray(base, dtype=float), np.asarray(other, dtype=float)
    if len(first) == 0 or len(first) != len(second):
        raise EmEvalsError(f"{len(first)} and {len(second)} items cannot be compared in pairs.")
    difference = second - first
    if set(np.unique([first, second])) <= {0.0, 1.0}:
        gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
        p = float(stats.binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
        return Difference(float(difference.mean()), _bonett_price(gained, lost, len(first)), p)
    if np.ptp(difference) == 0:
        # Nothing to resample: of all sign patterns, only two are as far from zero.
        value = float(difference[0])
        return Difference(value, (value, value), 1.0 if value == 0 else 2 * 0.5 ** len(first))
    batch = max(1, _AT_ONCE // len(difference))
    found = stats.bootstrap(
        (difference,),
        np.mean,
        batch=batch,
        confidence_level=CONFIDENCE,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    test = stats.permutation_test(
        (difference,),
        np.mean,
        batch=batch,
        permutation_type="samples",
        n_resamples=_RESAMPLES,
        vectorized=True,
        rng=np.random.default_rng(_SEED),
    )
    return Difference(float(difference.mean()), (float(found.low), float(found.high)), float(test.pvalue))


def _bonett_price(gained: int, lost: int, items: int) -> Interval:
    up, down = (gained + 1) / (items + 2), (lost + 1) / (items + 2)
    reach = stats.norm.ppf(1 - (1 - CONFIDENCE) / 2) * math.sqrt((up + down - (up - down) ** 2) / (items + 2))
    return max(-1.0, float(up - down - reach)), min(1.0, float(up - down + reach))


def compare(baseline: ModelResults, models: Sequence[ModelResults]) -> Retention:
    """Every model against the baseline, on the tasks that both have.

    `overall` is all items of the tasks that are right or wrong; forced-choice margins stay out of it.

    Raises:
        EmEvalsError: nothing in common, or one task's items, version or examples differ between two models.
    """
    rows = []
    for model in models:
        common = [task for task in baseline.tasks if task in model.tasks]
        if not common:
            raise EmEvalsError(f"{baseline.name} and {model.name} have no task in common.")
        pairs = [(baseline.tasks[task], model.tasks[task]) for task in common]
        for one, other in pairs:
            _check(one, other)
        tasks = [_difference(task, pair[0].metric, [pair]) for task, pair in zip(common, pairs, strict=True)]
        counted = [pair for pair in pairs if pair[0].metric in ACCURACIES]
        if len(counted) > 1:
            tasks.append(_difference(OVERALL, "accuracy", counted))
        rows.append(RetainedModel(name=model.name, digest=model.digest, tasks=tasks))
    metrics = ", ".join(f"{task}: {scores.metric}" for task, scores in baseline.tasks.items())
    versions = ", ".join(f"{task}: {scores.version}" for task, scores in baseline.tasks.items())
    return Retention(
        baseline=baseline.name,
        models=rows,
        provenance={"baseline_digest": baseline.digest, "metrics": metrics, "versions": versions},
    )


def _difference(name: str, metric: str, pairs: Sequence[tuple[TaskScores, TaskScores]]) -> TaskDifference:
    base = [score for one, _ in pairs for score in one.scores.values()]
    other = [two.scores[item] for one, two in pairs for item in one.scores]
    # A model and itself: there is nothing to estimate.
    itself = all(one is two for one, two in pairs)
    found = Difference(0.0, (0.0, 0.0), 1.0) if itself else paired(base, other)
    return TaskDifference(
        task=name,
        metric=metric,
        n=len(base),
        accuracy=float(np.mean(other)),
        baseline_accuracy=float(np.mean(base)),
        difference=found.value,
        interval=found.interval,
        p=found.p,
    )


def _check(one: TaskScores, other: TaskScores) -> None:
    """Refuse to pair what is not the same task."""
    for what, mine, theirs in (
        ("version", one.version, other.version),
        ("number of examples in the prompt", one.shots, other.shots),
        ("metric", one.metric, other.metric),
        ("use of a chat template", one.chat, other.chat),
        ("system message", one.system, other.system),
    ):
        if mine != theirs:
            raise EmEvalsError(
                f"{one.task}: the {what} is {mine} in {one.path.name} and {theirs} here; measure both alike.",
                other.path,
            )
    if one.scores.keys() != other.scores.keys():
        shared = len(one.scores.keys() & other.scores.keys())
        raise EmEvalsError(
            f"{one.task}: {len(one.scores)} items in {one.path.name}, {len(other.scores)} here, {shared} of them the "
            "same; measure both with the same items (--limit).",
            other.path,
        )
