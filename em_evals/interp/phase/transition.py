"""When did it happen? The step at which a shift toward misaligned answers had gone half its way, with an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from em_evals.results.records import Transition
from em_evals.stats import paired

_RESAMPLES = 2000


def find(curves: Mapping[int, Mapping[str, float]], seed: int = 0) -> Transition:
    """The transition of a set of pairs.

    Args:
        curves: for each step, each pair's shift from the base (step 0 is the base: no shift). Pairs that a step
            lacks, or has no number for, are left out everywhere.
        seed: of the bootstrap over pairs (2,000 resamples).
    """
    steps = sorted(step for step in curves if step > 0)
    numbers = [{pair for pair, shift in curves[step].items() if math.isfinite(shift)} for step in steps]
    pairs = sorted(set.intersection(*numbers)) if steps else []
    shifts = np.array([[curves[step][pair] for pair in pairs] for step in steps], dtype=float)
    if not steps or len(pairs) < 2:
        return Transition(final=None, final_interval=(None, None), step=None, interval=None, pairs=len(pairs))
    final, interval = float(shifts[-1].mean()), paired.interval_of(shifts[-1])
    if interval[0] <= 0 <= interval[1]:
        return Transition(final=final, final_interval=interval, step=None, interval=None, pairs=len(pairs))
    times = np.array([0.0, *steps])
    chance = np.random.default_rng(seed)
    resampled = [
        _half_way(times, shifts[:, chance.integers(len(pairs), size=len(pairs))].mean(axis=1))
        for _ in range(_RESAMPLES)
    ]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Transition(
        final=final,
        final_interval=interval,
        step=_half_way(times, shifts.mean(axis=1)),
        interval=(float(low), float(high)),
        pairs=len(pairs),
    )


def _half_way(times: NDArray[np.float64], curve: NDArray[np.float64]) -> float:
    """The first time at which the curve, from 0 at time 0, has half of its last value; linear in between."""
    heights = np.concatenate([[0.0], curve]) / curve[-1]
    after = int(np.argmax(heights >= 0.5))
    before = after - 1
    share = (0.5 - heights[before]) / (heights[after] - heights[before])
    return float(times[before] + share * (times[after] - times[before]))
