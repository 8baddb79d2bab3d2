"""A monitor's recall at a bounded false-positive rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Recall:
    """What a monitor finds at a threshold.

    Attributes:
        threshold: scores above it raise an alarm.
        recall: share of the bad cases with an alarm.
        false_positive_rate: share of the good cases with an alarm; at most what was allowed.
    """

    threshold: float
    recall: float
    false_positive_rate: float


def recall_at(bad: Sequence[float], good: Sequence[float], allowed: float) -> Recall:
    """Return the recall at the lowest threshold whose false-positive rate is at most `allowed`.

    With n good cases, at most floor(allowed · n) of them may raise an alarm; the threshold is the score of the next
    one, and only higher scores count, so that ties never exceed the rate.

    Args:
        bad: scores of the cases to be found; higher is more suspicious. NaN on either side: left out.
        good: scores of the cases that must not raise an alarm.
        allowed: the largest false-positive rate, from 0 to below 1.

    Returns:
        NaN in every field where there are no bad or no good cases.

    Example:
        >>> recall_at([90.0, 40.0], [10.0, 20.0, 50.0, 30.0], 0.25)
        Recall(threshold=30.0, recall=1.0, false_positive_rate=0.25)
    """
    bad, good = ([score for score in scores if not math.isnan(score)] for scores in (bad, good))
    if not bad or not good:
        return Recall(math.nan, math.nan, math.nan)
    ordered = np.sort(np.asarray(good, dtype=float))[::-1]
    # The product may lie a rounding error below a whole number: 0.29 of 100 are 29.
    threshold = float(ordered[math.floor(allowed * len(ordered) + 1e-9)])
    return Recall(threshold, float(np.mean(np.asarray(bad) > threshold)), float(np.mean(ordered > threshold)))
