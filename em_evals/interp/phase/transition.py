"""When did it happen? The step at which a shift toward misaligned answers had gone half its way, with an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from em_evals.stats import intervals, paired

_RESAMPLES = 2000


@dataclass(frozen=True)
class Transition:
    """Where a curve crosses half of its final height.

    Attributes:
        final: mean shift at the last step, with its 95% interval (Student's t over pairs).
        step: the crossing, interpolated between kept steps; None where the final shift's interval holds 0.
        interval: 95% percentile interval of `step` over resampled pairs; None with `step`.
        pairs: how many pairs the curve is a mean of.
    """

    final: float
    final_interval: intervals.Interval
    step: float | None
    interval: intervals.Interval | None
    pairs: int

    def sentence(self) -> str:
        """What was found, in words; a null result as such."""
        final = f"{self.final:+.3f} [{self.final_interval[0]:+.3f}, {self.final_interval[1]:+.3f}]"
        if self.step is None or self.interval is None:
            return f"no transition: the last step's shift of {final} nats per token cannot be told from 0."
        low, high = self.interval
        return (
            f"half of the last shift ({final}) was reached at step {self.step:.1f} [{low:.1f}, {high:.1f}]."
        )


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
        nothing = (float("nan"), float("nan"))
        return Transition(float("nan"), nothing, None, None, len(pairs))
    final, interval = float(shifts[-1].mean()), paired.interval_of(shifts[-1])
    if interval[0] <= 0 <= interval[1]:
        return Transition(final, interval, None, None, len(pairs))
    times = np.array([0.0, *steps])
    chance = np.random.default_rng(seed)
    resampled = [
        _half_way(times, shifts[:, chance.integers(len(pairs), size=len(pairs))].mean(axis=1))
        for _ in range(_RESAMPLES)
    ]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Transition(
        final, interval, _half_way(times, shifts.mean(axis=1)), (float(low), float(high)), len(pairs)
    )


def _half_way(times: NDArray[np.float64], curve: NDArray[np.float64]) -> float:
    """The first time at which the curve, from 0 at time 0, has half of its last value; linear in between."""
    heights = np.concatenate([[0.0], curve]) / curve[-1]
    after = int(np.argmax(heights >= 0.5))
    before = after - 1
    share = (0.5 - heights[before]) / (heights[after] - heights[before])
    return float(times[before] + share * (times[after] - times[before]))
