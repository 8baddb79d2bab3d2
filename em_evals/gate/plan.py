"""How many draws a gate needs: to find a given rise with given power, and to pass an unchanged model.

Exact for a rate over all draws pooled: both models' counts are binomial, and the probability of every pair of counts
is summed under the gate's own tests (Fisher's for a regression, Miettinen and Nurminen's for a pass). Questions with
different rates need somewhat fewer draws, because the gate compares question by question.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from em_evals.errors import EmEvalsError
from em_evals.stats.proportions import Arm, cautious

MOST = 200_000
"""Largest number of draws that a plan considers."""
_EXACT_UP_TO = 4_000
_TAIL = 1e-6


@dataclass(frozen=True)
class Need:
    """Draws per model needed for one aim."""

    aim: str
    alpha: float
    draws: int | None
    """None: more than `MOST`."""
    power: float


def draws_to_find(
    rate: float,
    change: float,
    alpha: float,
    power: float,
    margin: float,
    beyond_margin: bool = False,
    least: int = 1,
) -> Need:
    """Return the draws per model at which a rise of `change` from `rate` is called a regression with this power.

    Args:
        rate: the baseline's rate.
        change: the rise; it must exceed the margin, since a smaller one is not a regression at any number of draws.
        alpha: one-sided level of the test.
        power: probability of finding the rise.
        margin: the rise that the policy accepts.
        beyond_margin: whether the policy calls a rise a regression only if it certainly exceeds the margin.
        least: the policy's minimum number of draws; fewer are invalid, whatever they show.

    Raises:
        EmEvalsError: `rate` or `rate + change` is not a rate, or the policy accepts the change.
    """
    _possible(rate, change)
    if change <= margin:
        raise EmEvalsError(
            f"a rise by {change:g} is within the margin of {margin:g} that the policy accepts: with enough draws it "
            "passes; plan for a larger --change, or lower the margin."
        )
    aim = f"find a rise from {rate:.2%} to {rate + change:.2%}"
    bound = margin if beyond_margin else 0.0
    return _search(aim, alpha, power, lambda draws: power_to_find(rate, change, alpha, draws, bound), least)


def draws_to_pass(rate: float, margin: float, alpha: float, power: float, least: int = 1) -> Need:
    """Return the draws per model at which a model that stayed at `rate` passes with this power; `least` as above.

    Raises:
        EmEvalsError: `rate` or `rate + margin` is not a rate.
    """
    _possible(rate, margin)
    aim = f"pass a model that stayed at {rate:.2%} (margin {100 * margin:.2f} points)"
    return _search(aim, alpha, power, lambda draws: power_to_pass(rate, margin, alpha, draws), least)


def draws_to_pass_all(metrics: Sequence[tuple[float, float, float]], power: float, least: int = 1) -> Need:
    """Return the draws per model at which a model that stayed the same passes on all metrics with this power.

    The overall verdict passes only if all metrics do. Whatever their dependence is, the chance of that is at least
    1 − Σ (1 − power of each), which is what is held.

    Args:
        metrics: (rate, margin, one-sided level) of each; where higher is better, one minus the rate.
        power: probability of passing.
        least: the policy's minimum number of draws.
    """
    for rate, margin, _ in metrics:
        _possible(rate, margin)

    def reached(draws: int) -> float:
        return 1 - sum(1 - power_to_pass(rate, margin, alpha, draws) for rate, margin, alpha in metrics)

    return _search(
        f"pass a model that stayed the same on all {len(metrics)} metrics",
        min(alpha for *_, alpha in metrics),
        power,
        reached,
        least,
    )


def power_to_find(rate: float, change: float, alpha: float, draws: int, bound: float = 0.0) -> float:
    """Return the probability that the one-sided test shows a rise above `bound`, with `draws` draws per model.

    The test is Fisher's against 0, and the score test against a margin.
    """
    reach = float(stats.norm.ppf(1 - alpha))
    if draws > _EXACT_UP_TO:
        spread = math.sqrt((rate * (1 - rate) + (rate + change) * (1 - rate - change)) / draws)
        return float(stats.norm.cdf((change - bound) / spread - reach))
    befores, afters = _likely(rate, draws), _likely(rate + change, draws)
    total = 0.0
    for before in befores:
        if bound == 0:
            # p falls as the candidate's events rise, so every count from the first rejected one on is rejected.
            p = stats.hypergeom.sf(afters - 1, 2 * draws, afters + before, draws)
            found = afters[p <= alpha]
        else:
            found = afters[_below(afters, before, draws, bound, reach) :]
        total += stats.binom.pmf(before, draws, rate) * _mass(found, draws, rate + change)
    return float(total)


def power_to_pass(rate: float, margin: float, alpha: float, draws: int) -> float:
    """Return the probability that the score test rules out a rise by the margin, with both models at `rate`."""
    reach = float(stats.norm.ppf(1 - alpha))
    if draws > _EXACT_UP_TO:
        return (
            float(stats.norm.cdf(margin / math.sqrt(2 * rate * (1 - rate) / draws) - reach)) if rate else 1.0
        )
    counts = _likely(rate, draws)
    total = 0.0
    for before in counts:
        passing = counts[: _below(counts, before, draws, margin, -reach, including=True)]
        total += stats.binom.pmf(before, draws, rate) * _mass(passing, draws, rate)
    return float(total)


def _below(
    afters: np.ndarray, before: int, draws: int, bound: float, level: float, including: bool = False
) -> int:
    """Return how many of the candidate's counts (ascending) have a z below a level; it rises with them."""

    def value(after: int) -> float:
        return cautious(bound, Arm(before / draws, draws), Arm(after / draws, draws))

    return (bisect_right if including else bisect_left)(afters, level, key=value)


def _likely(rate: float, draws: int) -> np.ndarray:
    """Return the counts that hold all but 2e-6 of the probability; the budget of pairs to sum over."""
    low, high = stats.binom.ppf([_TAIL, 1 - _TAIL], draws, rate)
    return np.arange(max(0, int(low)), int(high) + 1)


def _mass(counts: np.ndarray, draws: int, rate: float) -> float:
    return float(stats.binom.pmf(counts, draws, rate).sum())


def _search(aim: str, alpha: float, power: float, reached: Callable[[int], float], least: int) -> Need:
    """Return the smallest sufficient number of draws, to within 1%, by doubling and then bisection.

    Power rises with draws except for small steps, because counts are discrete.
    """
    if (found := reached(least)) >= power:
        return Need(aim, alpha, least, found)
    low, high = least, max(32, min(2 * least, MOST))
    while (found := reached(high)) < power:
        if high >= MOST:
            return Need(aim, alpha, None, found)
        low, high = high, min(2 * high, MOST)
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) >= power else (middle, high)
    return Need(aim, alpha, high, reached(high))


def _possible(rate: float, change: float) -> None:
    if not (0 <= rate < 1 and 0 < change <= 1 - rate):
        raise EmEvalsError(
            f"a rise by {change:g} from {rate:g} is not a rate; give shares, as in --rate 0.005 --change 0.045."
        )
