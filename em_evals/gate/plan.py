"""How many draws a gate needs: to find a given rise with given power, and to pass a model that did not change.

Exact for a rate over all draws together: both models' counts are binomial, and the chance of every pair of counts is
added up under the gate's own tests (Fisher's for a regression, Miettinen and Nurminen's for a pass). Questions that
differ in their rates need somewhat fewer draws, because the gate compares question by question.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats

from em_evals.errors import EmEvalsError
from em_evals.gate.proportions import Arm, score

MOST = 200_000
"""Draws beyond which no plan is made."""
_EXACT_UP_TO = 4_000
_TAIL = 1e-6


@dataclass(frozen=True)
class Need:
    """Draws of each model for one aim."""

    aim: str
    alpha: float
    draws: int | None
    """None: more than `MOST`."""
    power: float


def draws_to_find(rate: float, change: float, alpha: float, power: float) -> Need:
    """Draws of each model after which a rise of `change` from `rate` is called a regression with this power.

    Raises:
        EmEvalsError: rate and change do not make two rates.
    """
    _possible(rate, change)
    aim = f"find a rise from {rate:.2%} to {rate + change:.2%}"
    return _search(aim, alpha, power, lambda draws: power_to_find(rate, change, alpha, draws))


def draws_to_pass(rate: float, margin: float, alpha: float, power: float) -> Need:
    """Draws of each model after which one that stayed at `rate` passes with this power.

    Raises:
        EmEvalsError: rate and margin do not make two rates.
    """
    _possible(rate, margin)
    aim = f"pass a model that stayed at {rate:.2%} (margin {100 * margin:.2f} points)"
    return _search(aim, alpha, power, lambda draws: power_to_pass(rate, margin, alpha, draws))


def power_to_find(rate: float, change: float, alpha: float, draws: int) -> float:
    """The chance that Fisher's one-sided test finds the rise, each model drawn `draws` times."""
    if draws > _EXACT_UP_TO:
        spread = math.sqrt((rate * (1 - rate) + (rate + change) * (1 - rate - change)) / draws)
        return float(stats.norm.cdf(change / spread - stats.norm.ppf(1 - alpha)))
    befores, afters = _likely(rate, draws), _likely(rate + change, draws)
    total = 0.0
    for before in befores:
        # p falls as the candidate's events rise: all counts from the first rejected one on reject.
        p = stats.hypergeom.sf(afters - 1, 2 * draws, afters + before, draws)
        total += stats.binom.pmf(before, draws, rate) * _mass(afters[p <= alpha], draws, rate + change)
    return float(total)


def power_to_pass(rate: float, margin: float, alpha: float, draws: int) -> float:
    """The chance that the score test rules a rise by the margin out, both models being at `rate`."""
    reach = float(stats.norm.ppf(1 - alpha))
    if draws > _EXACT_UP_TO:
        return (
            float(stats.norm.cdf(margin / math.sqrt(2 * rate * (1 - rate) / draws) - reach)) if rate else 1.0
        )
    counts = _likely(rate, draws)

    @cache
    def passes(before: int, after: int) -> bool:
        return score(margin, Arm(before / draws, draws), Arm(after / draws, draws)) <= -reach

    total = 0.0
    for before in counts:
        low, high = -1, len(counts) - 1
        while low < high:  # the most events of the candidate that still pass
            middle = (low + high + 1) // 2
            low, high = (middle, high) if passes(int(before), int(counts[middle])) else (low, middle - 1)
        total += stats.binom.pmf(before, draws, rate) * _mass(counts[: low + 1], draws, rate)
    return float(total)


def _likely(rate: float, draws: int) -> np.ndarray:
    """The counts that hold nearly all probability."""
    low, high = stats.binom.ppf([_TAIL, 1 - _TAIL], draws, rate)
    return np.arange(max(0, int(low)), int(high) + 1)


def _mass(counts: np.ndarray, draws: int, rate: float) -> float:
    return float(stats.binom.pmf(counts, draws, rate).sum())


def _search(aim: str, alpha: float, power: float, reached: Callable[[int], float]) -> Need:
    """The least number of draws, by doubling and halving; power rises with draws but for small steps."""
    low, high = 1, 32
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
            f"a rise by {change:g} from {rate:g} makes no rate; give shares, as in --rate 0.005 --change 0.045."
        )
