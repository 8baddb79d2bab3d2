"""Power of a set of bases to find a slope of the EM rate's logit on training tokens: a simulation.

A base's logit is slope · (log10 T − mean) plus a family's level, a normal term for the base and one for each training
run; draws are binomial. With as many organisms for every base, the mixed model's slope within families is that of
least squares over the bases' mean logits with families as fixed effects, and its test has bases − families − slopes
degrees of freedom. So a thousand studies are one product of matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

LEVEL, WANTED = 0.05, 0.8
SLOPES = tuple(np.round(np.arange(0.0, 2.05, 0.1), 2).tolist())


@dataclass(frozen=True)
class PlannedBase:
    """One base of a plan: where it stands."""

    family: str
    parameters: float
    tokens: float


@dataclass(frozen=True)
class World:
    """What is assumed; spreads are standard deviations of the logit.

    Attributes:
        rate: EM rate of the middle base.
        base_spread: between bases of one size.
        run_spread: between training runs (data sets and seeds) of one base.
    """

    rate: float = 0.1
    base_spread: float = 0.2
    run_spread: float = 0.3


@dataclass(frozen=True)
class Power:
    """Power over a grid of slopes.

    Attributes:
        slopes: of the logit per tenfold of T.
        power: chance that the two-sided test at 5% finds each.
        smallest: the smallest slope found with 80% power, interpolated; NaN where none of the grid is.
        freedom: degrees of freedom of the test.
        with_size: whether log P varies within families and is in the model.
    """

    slopes: tuple[float, ...]
    power: tuple[float, ...]
    smallest: float
    freedom: int
    with_size: bool


def power(
    bases: Sequence[PlannedBase],
    runs: int,
    draws: int,
    world: World,
    studies: int = 1000,
    seed: int = 0,
    slopes: Sequence[float] = SLOPES,
) -> Power:
    """Simulate studies of a design.

    Args:
        bases: at least two more than families.
        runs: organisms for each base (data sets times seeds).
        draws: graded draws for each organism.
        world: what is assumed.
        studies: for each slope.
        seed: of the simulation.
        slopes: of the logit per tenfold of T.

    Raises:
        ValueError: T does not vary within a family apart from P, or no degree of freedom is left.
    """
    columns, with_size = _columns(bases)
    freedom = len(bases) - columns.shape[1]
    if freedom < 1:
        raise ValueError(f"{len(bases)} bases leave no degree of freedom for {columns.shape[1]} columns")
    chance = np.random.default_rng(seed)
    found = [_share(columns, slope, runs, draws, world, studies, freedom, chance) for slope in slopes]
    return Power(tuple(slopes), tuple(found), _smallest(slopes, found), freedom, with_size)


def tests(columns: Array, logits: Array) -> Array:
    """Return two-sided p of the first column's slope for many studies.

    Args:
        columns: [bases, columns].
        logits: [studies, bases].
    """
    inverse = np.linalg.inv(columns.T @ columns)
    estimates = logits @ columns @ inverse
    left = logits - estimates @ columns.T
    freedom = columns.shape[0] - columns.shape[1]
    errors = np.sqrt((left**2).sum(1) / freedom * inverse[0, 0])
    return np.asarray(2 * stats.t.sf(np.abs(estimates[:, 0]) / errors, freedom))


def _columns(bases: Sequence[PlannedBase]) -> tuple[Array, bool]:
    """Return log T, log P where it varies within families, and a column for each family."""
    families = list(dict.fromkeys(base.family for base in bases))
    dummies = np.array([[float(base.family == family) for family in families] for base in bases])
    within = [
        column - dummies @ (dummies.T @ column / dummies.sum(0))
        for column in (
            np.log10([base.tokens for base in bases]),
            np.log10([base.parameters for base in bases]),
        )
    ]
    t, p = within
    if np.abs(t).max() < 1e-9:
        raise ValueError("training tokens do not vary within any family")
    with_size = bool(np.abs(p).max() > 1e-9)
    if with_size and abs(p @ t) > (1 - 1e-9) * np.linalg.norm(p) * np.linalg.norm(t):
        raise ValueError("within families T does not vary apart from P")
    return np.column_stack([t, *([p] if with_size else []), dummies]), with_size


def _share(
    columns: Array,
    slope: float,
    runs: int,
    draws: int,
    world: World,
    studies: int,
    freedom: int,
    chance: np.random.Generator,
) -> float:
    """Return the share of studies that find a slope."""
    bases = len(columns)
    level = np.log(world.rate / (1 - world.rate)) + slope * columns[:, 0]
    own = level + chance.normal(0, world.base_spread, (studies, bases))
    each = own[..., None] + chance.normal(0, world.run_spread, (studies, bases, runs))
    events = chance.binomial(draws, 1 / (1 + np.exp(-each)))
    logits = np.log((events + 0.5) / (draws - events + 0.5)).mean(-1)
    return float((tests(columns, logits) < LEVEL).mean())


def _smallest(slopes: Sequence[float], found: Sequence[float]) -> float:
    """Return where the power passes 80%."""
    for i in range(1, len(slopes)):
        if found[i - 1] < WANTED <= found[i]:
            share = (WANTED - found[i - 1]) / (found[i] - found[i - 1])
            return float(slopes[i - 1] + share * (slopes[i] - slopes[i - 1]))
    return float("nan")
