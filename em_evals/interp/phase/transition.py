"""Does a shift toward misaligned answers come in a step, and when? With intervals over pairs and step noise.

Any curve reaches half of its final value somewhere; that is no transition. stats/sharpness.py decides whether the curve
is sharper than smooth drift.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from em_evals.results.records.phase import Transition
from em_evals.stats import paired, sharpness

_RESAMPLES = 2000
_LEVEL = 0.05

Floats = NDArray[np.float64]


def find(
    curves: Mapping[int, Mapping[str, float]], seed: int = 0, clock: Mapping[int, float] | None = None
) -> Transition:
    """Find the transition of a set of pairs.

    Args:
        curves: for each step, each pair's shift from the base (step 0 is the base: no shift). Pairs that are missing or
            not finite at some step are left out everywhere.
        seed: of the bootstrap over pairs (2,000 resamples) and of the simulated null.
        clock: for each step, the learning rate summed up to it, in which drift may be smooth too; None: unknown.
    """
    steps = sorted(step for step in curves if step > 0)
    numbers = [{pair for pair, shift in curves[step].items() if math.isfinite(shift)} for step in steps]
    pairs = sorted(set.intersection(*numbers)) if steps else []
    shifts = np.array([[curves[step][pair] for pair in pairs] for step in steps], dtype=float)
    if not steps or len(pairs) < 2:
        return Transition(final=None, final_interval=(None, None), step=None, interval=None, pairs=len(pairs))
    final, interval = float(shifts[-1].mean()), paired.interval_of(shifts[-1])
    if not (interval[0] > 0 or interval[1] < 0):  # NaN excludes nothing
        return Transition(final=final, final_interval=interval, step=None, interval=None, pairs=len(pairs))
    times, curve = np.array(steps, dtype=float), shifts.mean(axis=1)
    scheduled = None if clock is None else np.array([clock[step] for step in steps], dtype=float)
    found = sharpness.test(times, curve, scheduled, seed)
    chance = np.random.default_rng(seed)
    resampled = np.stack(
        [shifts[:, chance.integers(len(pairs), size=len(pairs))].mean(axis=1) for _ in range(_RESAMPLES)]
    )
    sharp = found.p < _LEVEL
    noise = found.noise if math.isfinite(found.noise) else 0.0
    shaken = resampled + chance.normal(size=resampled.shape) * noise
    middles = sharpness.middles(times, shaken) if sharp else None
    return Transition(
        final=final,
        final_interval=interval,
        step=_half_way(times, curve),
        interval=_range(np.array([_half_way(times, one) for one in resampled])),
        pairs=len(pairs),
        sharp=sharp,
        p=None if math.isnan(found.p) else found.p,
        middle=found.middle if sharp else None,
        middle_interval=None if middles is None else _range(middles),
        rise=found.rise if sharp else None,
    )


def _range(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _half_way(times: Floats, curve: Floats) -> float:
    """Return the first time at which the curve, from 0 at time 0, has half of its last value; linear in between."""
    whole = np.concatenate([[0.0], times])
    heights = np.concatenate([[0.0], curve]) / curve[-1]
    after = int(np.argmax(heights >= 0.5))
    before = after - 1
    share = (0.5 - heights[before]) / (heights[after] - heights[before])
    return float(whole[before] + share * (whole[after] - whole[before]))
