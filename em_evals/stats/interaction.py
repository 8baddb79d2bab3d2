"""A difference in differences over prompts and training seeds: mean, interval, p-value.

Each cell is (organism cued - plain) - (base cued - plain) of one prompt and one training seed. Prompts are a sample,
and so are the seeds of one recipe; every seed answered every prompt. The mean's variance is that of crossed effects,

    (MS_prompts + MS_seeds - MS_rest) / (prompts · seeds),

from the mean squares of the two-way table, with Satterthwaite's degrees of freedom. With one seed it is Student's t
over prompts. A percentile bootstrap over prompts alone, as some papers publish, holds the seeds fixed and is short for
few prompts; `percentile` reproduces it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from em_evals.stats import ties
from em_evals.stats.intervals import CONFIDENCE, Interval
from em_evals.stats.special import p_value


@dataclass(frozen=True)
class Interaction:
    """The mean of a table of differences in differences.

    Attributes:
        estimate: mean over prompts and seeds, each with equal weight.
        error: its standard error; NaN with fewer than two prompts.
        freedom: degrees of freedom of the t distribution.
        by_seed: mean over prompts of each seed.
        prompts: number of prompts.
    """

    estimate: float
    error: float
    freedom: float
    by_seed: tuple[float, ...]
    prompts: int

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Return the t interval of the mean."""
        if math.isnan(self.error):
            return math.nan, math.nan
        if self.error == 0:
            return ties.interval(self.estimate, self._units, (1 - confidence) / 2)
        reach = float(stats.t.ppf(0.5 + confidence / 2, self.freedom)) * self.error
        return self.estimate - reach, self.estimate + reach

    @property
    def _units(self) -> int:
        """Number of prompts, or of seeds if there are several and fewer."""
        return min(self.prompts, len(self.by_seed)) if len(self.by_seed) > 1 else self.prompts

    @property
    def p(self) -> float:
        """Two-sided p-value of no interaction."""
        if math.isnan(self.error):
            return math.nan
        if self.error == 0:
            return 1.0 if self.estimate == 0 else min(1.0, 2 * ties.p_value(self._units))
        return p_value(2 * stats.t.sf(abs(self.estimate) / self.error, self.freedom))


def interaction(table: Sequence[Sequence[float]] | NDArray[np.float64]) -> Interaction:
    """Return the mean interaction of a table.

    Args:
        table: [prompts, seeds] or [prompts]; prompts with a NaN are left out.

    Example:
        >>> found = interaction([[1.0, 3.0], [3.0, 5.0]])
        >>> found.estimate, found.by_seed
        (3.0, (2.0, 4.0))
    """
    array = np.asarray(table, dtype=float)
    array = array[:, None] if array.ndim == 1 else array
    array = array[~np.isnan(array).any(1)]
    prompts, seeds = array.shape
    if not prompts:
        return Interaction(math.nan, math.nan, math.nan, (math.nan,) * seeds, 0)
    mean, rows, columns = float(array.mean()), array.mean(1), array.mean(0)
    by_seed = tuple(float(one) for one in columns)
    if prompts < 2:
        return Interaction(mean, math.nan, math.nan, by_seed, prompts)
    if ties.equal(array.ravel()):
        return Interaction(mean, 0.0, 1.0, by_seed, prompts)
    if seeds < 2:
        error = float(rows.std(ddof=1)) / math.sqrt(prompts)
        return Interaction(mean, error, prompts - 1, by_seed, prompts)
    of_rows = seeds * float(((rows - mean) ** 2).sum()) / (prompts - 1)
    of_columns = prompts * float(((columns - mean) ** 2).sum()) / (seeds - 1)
    freedom = (prompts - 1) * (seeds - 1)
    rest = float(((array - rows[:, None] - columns + mean) ** 2).sum()) / freedom
    # The estimate of a variance component can be negative; the mean's variance is never below either effect's alone.
    total = max(of_rows + of_columns - rest, of_rows, of_columns)
    squares = of_rows**2 / (prompts - 1) + of_columns**2 / (seeds - 1) + rest**2 / freedom
    degrees = max(1.0, total**2 / squares) if squares > 0 else float(prompts - 1)
    return Interaction(mean, math.sqrt(total / (prompts * seeds)), degrees, by_seed, prompts)


def percentile(
    table: Sequence[Sequence[float]] | NDArray[np.float64],
    seed: int,
    resamples: int = 10_000,
) -> Interval:
    """Return the percentile bootstrap over prompts of the mean of the seeds' means, as published tables have it.

    Prompts are drawn by `numpy.random.default_rng(seed).integers(0, prompts, (resamples, prompts))`; ends are linear
    quantiles.
    """
    array = np.asarray(table, dtype=float)
    array = array[:, None] if array.ndim == 1 else array
    drawn = np.random.default_rng(seed).integers(0, len(array), (resamples, len(array)))
    means = array.mean(1)[drawn].mean(1)
    low, high = np.quantile(means, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return float(low), float(high)
