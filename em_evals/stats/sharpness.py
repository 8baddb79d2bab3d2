"""Is a curve sharper than smooth drift? A step is reported only if no straight or bending drift explains it.

The smooth null is drift that starts at once: linear (y = h t), saturating (h (1 - exp(-t/tau)), h t/(t + tau),
h tanh(t/tau), h min(t/tau, 1)), slowing or accelerating (h t^a, h (exp(t/tau) - 1)). It is fitted in steps and, where a
clock is given (the learning rate summed over steps), in that clock too: a schedule alone bends a curve. The alternative
is a logistic step, with its middle and width on a grid. The statistic is log(RSS of the best drift / RSS of the best
step).

Its distribution under the null is simulated: the best drift of each family plus noise from step to step, with the
residuals' size and their correlation from one checkpoint to the next. The p-value is the largest over the families.
Curves are linear in their heights, so that every fit is one product of matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from em_evals.stats import ties

Floats = NDArray[np.float64]

LEAST_POINTS = 8
"""Fewer checkpoints cannot tell a step from drift."""
_DRAWS = 499
_FINE = 41
_SCALES = np.geomspace(0.02, 3.0, 20)
"""tau as shares of the whole time."""
_FAMILIES: tuple[tuple[Callable[[Floats, Floats], Floats], Floats], ...] = (
    (lambda t, tau: -np.expm1(-t / tau), _SCALES),
    (lambda t, tau: t / (t + tau), _SCALES),
    (lambda t, tau: np.tanh(t / tau), _SCALES),
    (lambda t, tau: np.minimum(t / tau, 1.0), _SCALES),
    (lambda t, power: t**power, np.geomspace(0.15, 4.0, 20)),
    (lambda t, tau: np.expm1(t / tau), _SCALES[_SCALES > 0.1]),
)
"""Drift that starts at once, over the share of time, with its parameter's grid."""
_WIDTHS = np.geomspace(0.004, 0.12, 7)
"""Widths of the logistic as shares of the whole time: at 0.12 the middle half of the rise takes a quarter of it."""
_MIDDLES = 80
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Sharpness:
    """The best step of a curve, and the probability of as sharp a one in smooth drift.

    Attributes:
        p: of the smooth null; NaN with too few points.
        middle: time of the step's middle.
        rise: time that the middle half of the rise takes (from 25% to 75%).
        noise: standard deviation of a point around the best step.
    """

    p: float
    middle: float
    rise: float
    noise: float


def test(times: Floats, values: Floats, clock: Floats | None = None, seed: int = 0) -> Sharpness:
    """Test a curve that starts at 0 at time 0.

    Args:
        times: [points], ascending, above 0.
        values: [points].
        clock: [points], another time in which drift may be smooth; None: none.
        seed: of the simulated null.

    Returns:
        The step and its p-value; NaN with fewer than 8 points, where one has no value, or where all are equal.
    """
    size = float(np.abs(values).max(initial=0.0))
    known = math.isfinite(size) and (clock is None or bool(np.isfinite(clock).all()))
    if len(times) < LEAST_POINTS or not known or ties.equal(values):
        return Sharpness(math.nan, math.nan, math.nan, math.nan)
    values = values / size  # `_SMALLEST` is about values near 1: a step is as sharp in any unit
    steps, shapes = _steps(times)
    kinds = _drifts(values, times, clock)
    smooth = np.concatenate(kinds)
    left, best = _left(values[None], shapes)
    observed = _statistic(values[None], smooth, shapes)[0]
    noise = math.sqrt(float(left[0]) / max(len(times) - 3, 1))
    chance = np.random.default_rng(seed)
    largest = 0.0
    for drift in kinds:  # 13 simulations at most, each a product of matrices
        fitted = _fitted(values, drift)
        drawn = fitted + _noise(values - _fitted(values, shapes), noise, chance)
        found = _statistic(drawn, smooth, shapes)
        largest = max(largest, (1 + int((found >= observed).sum())) / (1 + _DRAWS))
    middle, width = steps[int(best[0])]
    return Sharpness(largest, middle, 2 * math.log(3) * width, noise * size)


def middles(times: Floats, curves: Floats) -> Floats:
    """Return [curves], the middle of the best step of each curve ([curves, points])."""
    steps, shapes = _steps(times)
    _, best = _left(curves, shapes)
    return np.array([middle for middle, _ in steps])[best]


def _drifts(values: Floats, times: Floats, clock: Floats | None) -> list[Floats]:
    """Return unit shapes of smooth drift by family, each [shapes, points].

    Each family has a coarse grid of its parameter, and a fine one around the value that fits best: where noise is
    small, a coarse grid alone would leave more of a smooth curve unexplained than its noise.
    """
    kinds = []
    for time in (times, clock):
        if time is None or time[-1] <= 0:
            continue
        share = (time / time[-1])[None]
        kinds.append(_units(share))
        for shape, grid in _FAMILIES:
            coarse = _units(shape(share, grid[:, None]))
            best = grid[_left(values[None], coarse)[1][0]]
            step = grid[1] / grid[0]
            fine = np.geomspace(best / step, best * step, _FINE)[:, None]
            kinds.append(np.concatenate([coarse, _units(shape(share, fine))]))
    return kinds


def _steps(times: Floats) -> tuple[list[tuple[float, float]], Floats]:
    """Return (middle, width) of each logistic step and its unit shape, [shapes, points]; each is 0 at time 0."""
    whole = float(times[-1])
    chosen = [
        (float(middle), float(width * whole))
        for middle in np.linspace(times[0] / 2, whole, _MIDDLES)
        for width in _WIDTHS
    ]
    middle, width = np.array(chosen).T[:, :, None]
    rise, start = (1 / (1 + np.exp(np.clip((middle - time) / width, -60, 60))) for time in (times, 0.0))
    return chosen, _units(rise - start)


def _statistic(curves: Floats, smooth: Floats, shapes: Floats) -> Floats:
    drift, step = _left(curves, smooth)[0], _left(curves, shapes)[0]
    return np.asarray(np.log(np.maximum(drift, _SMALLEST) / np.maximum(step, _SMALLEST)))


def _left(curves: Floats, shapes: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """Return [curves], the residual sum of squares of the best shape of free height, and that shape's place."""
    explained = (curves @ shapes.T) ** 2
    best = explained.argmax(1)
    total = (curves**2).sum(1)
    return np.maximum(total - explained[np.arange(len(curves)), best], 0.0), best


def _fitted(values: Floats, shapes: Floats) -> Floats:
    best = shapes[_left(values[None], shapes)[1][0]]
    return np.asarray((values @ best) * best)


def _noise(residuals: Floats, size: float, chance: np.random.Generator) -> Floats:
    """Return [draws, points] of noise with the residuals' size and lag-1 correlation (not below 0)."""
    count = len(residuals)
    square = float(residuals @ residuals)
    rho = float(residuals[1:] @ residuals[:-1]) / square if square > _SMALLEST else 0.0
    rho = min(
        max(rho + 1 / count, 0.0), 0.9
    )  # residuals of a fit are too little correlated by about 1 / points
    drawn = chance.normal(size=(_DRAWS, count))
    for i in range(1, count):
        drawn[:, i] = rho * drawn[:, i - 1] + math.sqrt(1 - rho**2) * drawn[:, i]
    return np.asarray(size * drawn)


def _units(shapes: Floats) -> Floats:
    return np.asarray(shapes / np.maximum(np.linalg.norm(shapes, axis=-1, keepdims=True), _SMALLEST))
