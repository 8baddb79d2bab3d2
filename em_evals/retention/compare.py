"""The capability cost of a fine-tune: item by item against a baseline, with intervals, per task and overall.

Both models answered the same items, so the comparison is paired: items that both get right, or both get wrong, carry
no information.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from em_evals.errors import EmEvalsError
from em_evals.results.records.studies import ACCURACIES, RetainedModel, Retention, TaskDifference
from em_evals.retention.scores import ModelResults, TaskScores
from em_evals.stats.paired import Difference, difference

OVERALL = "overall"


def compare(baseline: ModelResults, models: Sequence[ModelResults]) -> Retention:
    """Compare every model with the baseline, on the tasks that both have.

    `overall` pools the items of all accuracy tasks; forced-choice margins are excluded.

    Raises:
        EmEvalsError: no common task, or a task's items, version or examples differ between two models.
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
    base, other = (
        {f"{one.task}/{item}": score for one in side for item, score in one.scores.items()}
        for side in zip(*pairs, strict=True)
    )
    # For a model compared with itself there is nothing to estimate.
    itself = all(one is two for one, two in pairs)
    found = Difference(0.0, (0.0, 0.0), 1.0, len(base)) if itself else difference(base, other)
    return TaskDifference(
        task=name,
        metric=metric,
        n=found.n,
        accuracy=float(np.mean([*other.values()])),
        baseline_accuracy=float(np.mean([*base.values()])),
        difference=found.value,
        interval=found.interval,
        p=found.p,
    )


def _check(one: TaskScores, other: TaskScores) -> None:
    """Refuse to pair different tasks."""
    for what, mine, theirs in (
        ("version", one.version, other.version),
        ("number of examples in the prompt", one.shots, other.shots),
        ("metric", one.metric, other.metric),
        ("use of a chat template", one.chat, other.chat),
        ("system message", one.system, other.system),
    ):
        if mine != theirs:
            raise EmEvalsError(
                f"{one.task}: the {what} is {mine} in {one.path.name} and {theirs} here; measure both the same way.",
                other.path,
            )
    if one.scores.keys() != other.scores.keys():
        shared = len(one.scores.keys() & other.scores.keys())
        raise EmEvalsError(
            f"{one.task}: {len(one.scores)} items in {one.path.name}, {len(other.scores)} here, {shared} of them the "
            "same; measure both with the same items (--limit).",
            other.path,
        )
