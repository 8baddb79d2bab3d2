"""EM rate against the size of a base: slopes on log10 parameters (P), training tokens (T) and P/T.

The unit is the base, not the organism or the draw: a binomial regression over organisms of 8 bases gives p-values
that are wrong by many orders of magnitude. Two estimates per predictor: least squares over the bases' logits with a
permutation test (no model of the noise), and a mixed model with random family, base and training run
(`stats/mixed`). What the set of bases cannot tell apart is refused, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from em_evals.stats import mixed, ties

Array = NDArray[np.float64]

MINIMUM_BASES = 10
MAXIMUM_VIF = 3.0
MAXIMUM_WIDTH = 2.0
"""Widest interval of the slope on log T, given P and family, that still tells a tenfold change in odds from none."""
_EXACT = 8
_PERMUTATIONS = 10_000


@dataclass(frozen=True)
class Cell:
    """One organism's draws.

    Attributes:
        base: name of the base.
        family: bases that share data and recipe of pretraining.
        run: name of the training run; evaluations of one adapter share it.
        dataset: what the organism was trained on.
        misaligned: draws that count as misaligned.
        draws: all draws.
        parameters: P.
        tokens: T; NaN where it is not published.
        distilled: whether the base was distilled in pretraining.
    """

    base: str
    family: str
    run: str
    dataset: str
    misaligned: int
    draws: int
    parameters: float
    tokens: float
    distilled: bool = False


PREDICTORS: dict[str, Callable[[Cell], float]] = {
    "log P": lambda cell: math.log10(cell.parameters),
    "log T": lambda cell: math.log10(cell.tokens),
    "log P/T": lambda cell: math.log10(cell.parameters / cell.tokens),
}


@dataclass(frozen=True)
class Slope:
    """A change of the EM rate's logit per tenfold of a predictor; exp(value) is the odds ratio."""

    value: float
    interval: tuple[float, float]
    p: float


@dataclass(frozen=True)
class Predictor:
    """One predictor alone.

    Attributes:
        least_squares: over the bases' logits, t interval with n - 2 degrees of freedom; `p` by permutation of bases.
        mixed: the mixed model's slope, data sets as fixed effects; None where it cannot be fitted.
        within_family: the same with families as fixed effects; None where a predictor is constant within families.
        without: least-squares slope without each base, by the name left out.
        without_family: without each family.
    """

    name: str
    least_squares: Slope
    mixed: Slope | None
    within_family: Slope | None
    without: dict[str, float]
    without_family: dict[str, float]


@dataclass(frozen=True)
class Design:
    """What a set of bases can tell apart.

    Attributes:
        bases, families, runs: how many there are.
        vif: variance inflation factor of log P and log T given each other and family; infinite where one is constant,
            1 on ladders, where P is fixed by design.
        tokens_given_size: slope on log T given log P and family; None where it cannot be estimated.
        reasons: why no cause is named; empty where the design identifies one.
    """

    bases: int
    families: int
    runs: int
    vif: float
    tokens_given_size: Slope | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Partial:
    """Slopes on log P and log T in one model within families, and the predictors that Holm's test at 5% keeps."""

    slopes: dict[str, Slope]
    kept: tuple[str, ...]


def base_logits(cells: Sequence[Cell]) -> dict[str, float]:
    """Return log((x + 1/2) / (n - x + 1/2)) of each base's pooled draws.

    Example:
        >>> cells = [Cell("a", "f", "r", "d", 9, 100, 1e9, 1e12), Cell("a", "f", "s", "e", 11, 100, 1e9, 1e12)]
        >>> round(base_logits(cells)["a"], 4)
        -2.1753
    """
    names = dict.fromkeys(cell.base for cell in cells)
    found = {}
    for name in names:
        x = sum(cell.misaligned for cell in cells if cell.base == name)
        n = sum(cell.draws for cell in cells if cell.base == name)
        found[name] = math.log((x + 0.5) / (n - x + 0.5))
    return found


def predictor(name: str, cells: Sequence[Cell], seed: int = 0) -> Predictor:
    """Estimate the slope on one predictor; cells without a token count are left out of log T and log P/T.

    Raises:
        ValueError: fewer than three bases, or all have one value.
    """
    cells = known(name, cells)
    value = {cell.base: PREDICTORS[name](cell) for cell in cells}
    logits = base_logits(cells)
    x, y = np.array(list(value.values())), np.array([logits[base] for base in value])
    if len(x) < 3 or np.ptp(x) < 1e-9:
        raise ValueError(f"{name} has one value in these bases" if len(x) >= 3 else "fewer than three bases")
    slope = _least_squares(x, y)
    family = {cell.base: cell.family for cell in cells}
    return Predictor(
        name,
        replace(slope, p=_permuted(x, y, seed)),
        _mixed(cells, [name], families="random")[name],
        _mixed(cells, [name], families="fixed")[name],
        {base: _without(value, logits, {base}) for base in value},
        {
            one: _without(value, logits, {base for base in value if family[base] == one})
            for one in dict.fromkeys(family.values())
        },
    )


def design(cells: Sequence[Cell]) -> Design:
    """Say what these bases can tell apart, and why not more."""
    cells = known("log T", cells)
    bases = {cell.base: cell for cell in cells}
    families = {cell.family for cell in cells}
    ladder = is_ladder(cells)
    vif = 1.0 if ladder else _vif(list(bases.values()))
    names = ["log T"] if ladder else ["log P", "log T"]
    given = _mixed(cells, names, families="fixed")["log T"] if math.isfinite(vif) else None
    reasons = []
    if math.isinf(vif):
        reasons.append(
            "within families one of P and T does not vary apart from the other, so P, T and P/T are one variable"
        )
    elif vif > MAXIMUM_VIF:
        reasons.append(
            f"log P and log T vary together within families (VIF {vif:.1f}, at most {MAXIMUM_VIF:g})"
        )
    if len(bases) < MINIMUM_BASES:
        reasons.append(f"{len(bases)} bases are too few (at least {MINIMUM_BASES})")
    if given is not None and (width := given.interval[1] - given.interval[0]) > MAXIMUM_WIDTH:
        reasons.append(
            f"the slope on log T given P and family is known to ±{width / 2:.1f} only (at most ±{MAXIMUM_WIDTH / 2:g})"
        )
    runs = len({cell.run for cell in cells})
    return Design(len(bases), len(families), runs, vif, given, tuple(reasons))


def partial(cells: Sequence[Cell]) -> Partial | None:
    """Fit log P and log T together within families; log T alone on ladders; None where the columns are collinear.

    Families are fixed effects: with few of them, the variance between families is known so badly that a test of
    differences between families would find an effect of T in 11% of null designs. A slope on log P/T alone would show
    as equal and opposite slopes on log P and log T.
    """
    names = ["log T"] if is_ladder(known("log T", cells)) else ["log P", "log T"]
    found = _mixed(known("log T", cells), names, families="fixed")
    slopes = {name: slope for name in names if (slope := found[name]) is not None}
    if len(slopes) < len(names):
        return None
    ordered = sorted(slopes, key=lambda name: slopes[name].p)
    kept = []
    for rank, name in enumerate(ordered):  # Holm 1979
        if slopes[name].p > 0.05 / (len(ordered) - rank):
            break
        kept.append(name)
    return Partial(slopes, tuple(kept))


def is_ladder(cells: Sequence[Cell]) -> bool:
    """Return whether P is fixed in every family and T is not: checkpoints of pretrainings."""
    sizes: dict[str, set[float]] = {}
    tokens: dict[str, set[float]] = {}
    for cell in cells:
        sizes.setdefault(cell.family, set()).add(cell.parameters)
        tokens.setdefault(cell.family, set()).add(cell.tokens)
    return all(len(own) == 1 for own in sizes.values()) and any(len(own) > 1 for own in tokens.values())


def separation(cells: Sequence[Cell]) -> tuple[float, float] | None:
    """Compare distilled bases with the others: difference of mean logits, and its exact two-sided permutation p.

    Returns:
        (difference, p); None unless there are two bases of each kind.
    """
    logits = base_logits(cells)
    distilled = {cell.base: cell.distilled for cell in cells}
    y = np.array(list(logits.values()))
    which = np.array([distilled[base] for base in logits])
    if min(which.sum(), (~which).sum()) < 2:
        return None
    result = stats.permutation_test(
        (y[which], y[~which]),
        lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis),
        n_resamples=_PERMUTATIONS,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(result.statistic), float(result.pvalue)


def known(name: str, cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells that have the predictor's figures."""
    return [cell for cell in cells if name == "log P" or math.isfinite(cell.tokens)]


def _least_squares(x: Array, y: Array) -> Slope:
    """Return the slope with its t interval; NaN ends where all bases have one logit, as without any event."""
    found = stats.linregress(x, y)
    if ties.equal(y):
        return Slope(0.0, (math.nan, math.nan), 1.0)
    half = float(stats.t.ppf(0.975, len(x) - 2) * found.stderr) if len(x) > 2 else math.nan
    return Slope(
        float(found.slope), (float(found.slope) - half, float(found.slope) + half), float(found.pvalue)
    )


def _permuted(x: Array, y: Array, seed: int) -> float:
    """Return the two-sided p of the slope over permutations of the bases: all of them up to 8 bases."""
    if len(x) <= _EXACT:
        orders = np.array(list(permutations(range(len(x)))))
        extra = 0
    else:
        random = np.random.default_rng(seed)
        orders = random.permuted(np.tile(np.arange(len(x)), (_PERMUTATIONS, 1)), axis=1)
        extra = 1  # the observed order counts as one of the drawn ones
    centered = x - x.mean()
    observed = abs(centered @ y)
    as_far = np.count_nonzero(np.abs(centered[orders] @ y) >= observed - 1e-12)
    return float((as_far + extra) / (len(orders) + extra))


def _without(value: dict[str, float], logits: dict[str, float], dropped: set[str]) -> float:
    """Return the least-squares slope without some bases; NaN where none is left to estimate."""
    kept = [base for base in value if base not in dropped]
    x = np.array([value[base] for base in kept])
    if len(kept) < 3 or np.ptp(x) < 1e-9:
        return math.nan
    return _least_squares(x, np.array([logits[base] for base in kept])).value


def _vif(bases: Sequence[Cell]) -> float:
    """Return 1 / (1 - r²) of log P and log T within families."""
    values = []
    for name in ("log P", "log T"):
        column = np.array([PREDICTORS[name](cell) for cell in bases])
        for family in {cell.family for cell in bases}:
            own = np.array([cell.family == family for cell in bases])
            column[own] -= column[own].mean()
        values.append(column)
    p, t = values
    if min(np.abs(p).max(), np.abs(t).max()) < 1e-9:
        return math.inf
    share = float((p @ t) ** 2 / ((p @ p) * (t @ t)))
    return math.inf if share > 1 - 1e-9 else 1 / (1 - share)


def _mixed(cells: Sequence[Cell], names: Sequence[str], families: str) -> dict[str, Slope | None]:
    """Fit cells' logits on predictors, data sets fixed; base and run random, families random or fixed."""
    y = np.array([math.log((c.misaligned + 0.5) / (c.draws - c.misaligned + 0.5)) for c in cells])
    draws = np.array([cell.draws for cell in cells])
    fixed = [*_dummies([cell.dataset for cell in cells])]
    random = [[cell.base for cell in cells], [cell.run for cell in cells]]
    if families == "fixed":
        fixed += _dummies([cell.family for cell in cells])
    else:
        random.append([cell.family for cell in cells])
    # Centered, so that the intercept is the rate of the middle base and the fit is well scaled.
    predictors = [np.array([PREDICTORS[name](cell) for cell in cells]) for name in names]
    columns = np.column_stack([*[x - x.mean() for x in predictors], np.ones(len(cells)), *fixed])
    bases = len({cell.base for cell in cells})
    level = len(names) + 1 + (len({cell.family for cell in cells}) - 1 if families == "fixed" else 0)
    if bases <= level:
        return dict.fromkeys(names)
    try:
        found = _weighted_by_fit(y, draws, columns, random)
    except ValueError:
        return dict.fromkeys(names)
    # Predictors vary between bases only: runs and draws cannot add degrees of freedom above that level.
    found = replace(found, freedom=np.minimum(found.freedom, bases - level))
    return {
        name: Slope(float(found.estimates[i]), found.interval(i), found.p_value(i))
        for i, name in enumerate(names)
    }


def _weighted_by_fit(
    y: Array, draws: NDArray[np.int_], columns: Array, random: Sequence[Sequence[str]]
) -> mixed.Mixed:
    """Fit with the sampling variances 1 / (n p (1 - p)) of fitted rates p.

    Variances of the observed rates would give organisms with few misaligned draws by chance too little weight.
    """
    rate = np.full(len(y), 1 / (1 + math.exp(-float(np.average(y, weights=draws)))))
    for _ in range(3):
        found = mixed.fit(y, columns, random, 1 / (draws * rate * (1 - rate)))
        rate = np.clip(1 / (1 + np.exp(-(columns @ found.estimates))), 1e-4, 1 - 1e-4)
    return found


def _dummies(names: Sequence[str]) -> list[Array]:
    """Return a column of 0 and 1 for every name but the first."""
    return [np.array([float(name == one) for name in names]) for one in list(dict.fromkeys(names))[1:]]
