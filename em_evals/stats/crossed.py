"""Means over items and training seeds, both of which are samples: crossed random effects.

A recipe trained with another seed gives another model. Three seeds of 240 pairs are not 720 independent values: if
seeds differ, only three independent numbers say by how much. The model is y_is = mean + item_i + seed_s + residual_is.

Items (questions or pairs) and seeds are crossed: every model answers every item. With I items, S seeds and the mean
squares MS of the two-way table, the variance of the mean has two parts:

    items: MS_items / (I S), with I − 1 degrees of freedom
    seeds: (MS_seeds − MS_residual) / (I S), with S − 1; 0 if negative

The interval is mean ± t √(items + seeds), where t is the mean of both parts' Student's t, weighted by the parts
(Cochran and Cox 1957, Experimental Designs, section 4.14, for two variances), and never shorter than that of the seeds'
own means, t with S − 1. Satterthwaite's degrees of freedom, the usual choice, covered 92% at a nominal 95% with three
seeds. Where items are fixed (`scope: questions`), only seeds vary, and their own means are all there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from em_evals.stats import ties
from em_evals.stats.proportions import Interval, crossing
from em_evals.stats.special import special

_HALF, _MOST_DECADES = -math.log10(0.5), 14.0
_SMALLEST = 1e-12

Table = NDArray[np.float64]
"""[items, seeds]: a value of each item under each seed's model."""

Parts = tuple[tuple[float, float], ...]
"""(variance, degrees of freedom) of each part of an error."""


@dataclass(frozen=True)
class CrossedMean:
    """A mean (or a difference of means) over items and seeds, with its uncertainty over both.

    Attributes:
        mean: the mean; items and seeds count the same.
        parts: (variance, degrees of freedom) of each part of the error; none if nothing repeats.
        between: the same of each side's own seeds' means, which no interval may fall below.
        seeds: each seed's own mean; of a difference, the candidate's seeds minus the other side's mean.
    """

    mean: float
    parts: Parts
    between: Parts
    seeds: tuple[float, ...]

    @property
    def error(self) -> float:
        """The standard error; NaN if nothing repeats."""
        return math.sqrt(sum(part for part, _ in self.parts)) if self.parts else math.nan

    def interval(self, alpha: float) -> Interval:
        """Return the interval whose ends are each a bound at one-sided `alpha`; NaN if nothing repeats."""
        reach = self._reach(alpha)
        return self.mean - reach, self.mean + reach

    def p_above(self, bound: float) -> float:
        """Return the one-sided p-value of the hypothesis that the mean is at most `bound`."""
        return self._p(self.mean - bound)

    def p_below(self, bound: float) -> float:
        """Return the one-sided p-value of the hypothesis that the mean is at least `bound`."""
        return self._p(bound - self.mean)

    def _reach(self, alpha: float) -> float:
        """Return half of the interval's width."""
        total = sum(part for part, _ in self.parts)
        if not total > 0:
            return self.error
        return max(_cochran(self.parts, alpha), _cochran(self.between, alpha))

    def _p(self, gap: float) -> float:
        """Return the level at which the interval's end lies at the bound, `gap` from the mean."""
        if not self.parts:
            return math.nan
        if not self.error > 0:
            return float(gap <= 0)
        half = 0.5 if abs(gap) < _SMALLEST else _level(lambda alpha: self._reach(alpha) - abs(gap))
        return half if gap > 0 else 1 - half

    @property
    def carried_by(self) -> int | None:
        """Index of the seed that carries the effect: without it, less than half of the mean is left; else None."""
        if len(self.seeds) < 2 or abs(self.mean) < _SMALLEST:  # nothing is carried where there is no effect
            return None
        left = [(sum(self.seeds) - own) / (len(self.seeds) - 1) for own in self.seeds]
        index = min(range(len(left)), key=lambda seed: left[seed] * math.copysign(1, self.mean))
        return index if left[index] * math.copysign(1, self.mean) < abs(self.mean) / 2 else None


def crossed(values: Table, items_vary: bool = True) -> CrossedMean:
    """Return the mean of a table of items and seeds.

    Args:
        values: [items, seeds], without gaps.
        items_vary: whether items are a sample too; False for a statement about these items.

    Example:
        >>> table = np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 5.0]])
        >>> found = crossed(table)
        >>> round(found.mean, 3), round(found.error, 3), found.carried_by
        (2.667, 0.972, None)
    """
    return difference(np.zeros((len(values), 1)), values, items_vary)


def difference(
    before: Table, after: Table, items_vary: bool = True, noise: tuple[float, float] = (0.0, 0.0)
) -> CrossedMean:
    """Return the mean of `after` minus that of `before`, on the same items, each with seeds of its own.

    A side with one seed adds nothing to the variance between seeds: the statement is about this model.

    Args:
        before: [items, seeds] of one recipe or model.
        after: [items, seeds] of the other.
        items_vary: whether items are a sample too.
        noise: variance of each side's mean over its draws. It counts for a side with one seed if items do not vary:
            with many seeds it is part of the variance between them, and with varying items of that between items. Of
            seeds whose counts happen to be equal it is all that is known of their variance.
    """
    items = len(after)
    sides = [
        _Side.of(side, 0.0 if items_vary else own)
        for side, own in zip((before, after), noise, strict=True)
        if side.shape[1] > 1
    ]
    single = sum(own for side, own in zip((before, after), noise, strict=True) if side.shape[1] == 1)
    paired = after.mean(axis=1) - before.mean(axis=1)
    seeds = tuple(float(value - before.mean()) for value in after.mean(axis=0))
    if items_vary and items > 1:
        parts = [(float(paired.var(ddof=1)) / items, items - 1.0)]
        parts += [(max(side.between - side.residual, 0.0), side.seeds - 1.0) for side in sides]
    else:
        parts = [(side.between, side.seeds - 1.0) for side in sides]
        parts += [(single, math.inf)] if parts and single > 0 else []
    between = tuple((side.between, side.seeds - 1.0) for side in sides)
    return CrossedMean(float(paired.mean()), tuple(parts), between, seeds)


def _cochran(parts: Parts, alpha: float) -> float:
    """Return t √(sum of variances), with t weighted by the variances."""
    total = sum(part for part, _ in parts)
    if not total > 0:
        return 0.0
    weighted = sum(part * float(special.stdtrit(df, 1 - alpha)) for part, df in parts if part > 0)
    return weighted / math.sqrt(total)


def _level(decreasing: Callable[[float], float]) -> float:
    """Return the level below 1/2 at which a decreasing function of it crosses zero; levels are searched in decades."""
    return float(10 ** -crossing(lambda decades: -decreasing(10**-decades), _HALF, _MOST_DECADES))


@dataclass(frozen=True)
class _Side:
    """One side's contributions to the variance of its mean: between seeds, and the residual that both parts contain."""

    between: float
    residual: float
    seeds: int

    @classmethod
    def of(cls, values: Table, noise: float) -> _Side:
        items, seeds = values.shape
        rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
        freedom = (items - 1) * (seeds - 1)
        residual = float((rest**2).sum()) / freedom / (items * seeds) if freedom else 0.0
        means = values.mean(axis=0)
        return cls(noise if ties.equal(means) else float(means.var(ddof=1)) / seeds, residual, seeds)
