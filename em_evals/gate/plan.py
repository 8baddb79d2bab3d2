"""How many draws a gate needs: to find a given rise with given power, and to pass a model that did not change.

Exact for a rate over all draws together: both models' counts are binomial, and the chance of every pair of counts is
added up under the gate's own tests (Fisher's for a regression, Miettinen and Nurminen's for a pass). Questions that
differ in their rates need somewhat fewer draws, because the gate compares question by question.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from em_evals.errors import EmEvalsError
from em_evals.stats.proportions import Arm, score

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


def draws_to_find(
    rate: float,
    change: float,
    alpha: float,
    power: float,
    margin: float,
    beyond_margin: bool = False,
    least: int = 1,
) -> Need:
    """Draws of each model after which a rise of `change` from `rate` is called a regression with this power.

    Args:
        rate: the baseline's.
        change: the rise, larger than the margin: a smaller one is no regression, however many draws show it.
        alpha: one-sided level of the test.
        power: the chance of finding it.
        margin: the rise that the policy accepts.
        beyond_margin: the policy calls only a rise that surely exceeds the margin a regression.
        least: draws that the policy asks for anyway; fewer are invalid, whatever they show.

    Raises:
        EmEvalsError: rate and change do not make two rates, or the policy accepts the change.
    """
    _possible(rate, change)
    if change <= margin:
        raise EmEvalsError(
            f"a rise by {change:g} is within the margin of {margin:g} that the policy accepts: with draws enough it "
            "passes; plan for a larger --change, or lower the margin."
        )
    aim = f"find a rise from {rate:.2%} to {rate + change:.2%}"
    bound = margin if beyond_margin else 0.0
    return _search(aim, alpha, power, lambda draws: power_to_find(rate, change, alpha, draws, bound), least)


def draws_to_pass(rate: float, margin: float, alpha: float, power: float, least: int = 1) -> Need:
    """Draws of each model after which one that stayed at `rate` passes with this power; `least` as above.

    Raises:
        EmEvalsError: rate and margin do not make two rates.
    """
    _possible(rate, margin)
    aim = f"pass a model that stayed at {rate:.2%} (margin {100 * margin:.2f} points)"
    return _search(aim, alpha, power, lambda draws: power_to_pass(rate, margin, alpha, draws), least)


def power_to_find(rate: float, change: float, alpha: float, draws: int, bound: float = 0.0) -> float:
    """The chance that the gate's one-sided test shows a rise above `bound`, each model drawn `draws` times.

    Fisher's test against 0, the score test against a margin.
    """
    reach = float(stats.norm.ppf(1 - alpha))
    if draws > _EXACT_UP_TO:
        spread = math.sqrt((rate * (1 - rate) + (rate + change) * (1 - rate - change)) / draws)
        return float(stats.norm.cdf((change - bound) / spread - reach))
    befores, afters = _likely(rate, draws), _likely(rate + change, draws)
    total = 0.0
    for before in befores:
        if bound == 0:
            # p falls as the candidate's events rise: all counts from the first rejected one on reject.
            p = stats.hypergeom.sf(afters - 1, 2 * draws, afters + before, draws)
            found = afters[p <= alpha]
        else:
            found = afters[_below(afters, before, draws, bound, reach) :]
        total += stats.binom.pmf(before, draws, rate) * _mass(found, draws, rate + change)
    return float(total)


def power_to_pass(rate: float, margin: float, alpha: float, draws: int) -> float:
    """The chance that the score test rules a rise by the margin out, both models being at `rate`."""
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
    """How many of the candidate's counts (ascending) have a score below a level; the score rises with them."""

    def value(after: int) -> float:
        return score(bound, Arm(before / draws, draws), Arm(after / draws, draws))

    return (bisect_right if including else bisect_left)(afters, level, key=value)


def _likely(rate: float, draws: int) -> np.ndarray:
    """The counts that hold nearly all probability."""
    low, high = stats.binom.ppf([_TAIL, 1 - _TAIL], draws, rate)
    return np.arange(max(0, int(low)), int(high) + 1)


def _mass(counts: np.ndarray, draws: int, rate: float) -> float:
    return float(stats.binom.pmf(counts, draws, rate).sum())


def _search(aim: str, alpha: float, power: float, reached: Callable[[int], float], least: int) -> Need:
    """The smallest number of draws, by doubling and halving; power rises with draws but for small steps."""
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
            f"a rise by {change:g} from {rate:g} makes no rate; give shares, as in --rate 0.005 --change 0.045."
        )
