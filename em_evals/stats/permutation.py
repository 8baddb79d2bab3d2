"""Permutation tests of several hypotheses at once: the family-wise error of all is held by their maximum (max-T).

Westfall and Young 1993: every hypothesis is compared with the distribution of the *largest* statistic over all of them,
under permutations that keep the hypotheses' dependence. Unlike Bonferroni this costs little where they are correlated,
as steering conditions and probes on the same answers are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

DRAWS = 1999
_TIE = 1e-9


def adjusted(observed: Floats, drawn: Floats) -> Floats:
    """Return step-down max-T p-values (Westfall and Young, algorithm 4.1): the chance of as large a maximum.

    Args:
        observed: [hypotheses], large values speak against the null; NaN is never rejected and stays NaN.
        drawn: [draws, hypotheses], the same under permutations; NaN counts as -inf.

    Returns:
        [hypotheses], each holding together with all others.
    """
    values = np.where(np.isnan(observed), -np.inf, observed)
    order = np.argsort(-values, kind="stable")
    under = np.where(np.isnan(drawn), -np.inf, drawn)[:, order]
    # Step down: the k-th largest is compared with the maximum over those that are not larger.
    largest = np.maximum.accumulate(under[:, ::-1], axis=1)[:, ::-1]
    # A permutation that gives the observed labels again ties with them, but for rounding of another order of sums.
    reached = values[order] - _TIE * np.maximum(np.abs(values[order]), 1.0)
    p = (1 + (largest >= reached).sum(0)) / (1 + len(drawn))
    found = np.empty(len(values))
    found[order] = np.maximum.accumulate(p)
    return np.where(np.isnan(observed), np.nan, found)


def mean_shifts(groups: Sequence[Floats], seed: int = 0, draws: int = DRAWS) -> list[Floats]:
    """Return two-sided p-values of zero mean, adjusted over all columns of all groups.

    Signs of an item's values are flipped together in all columns of its group: exact where differences are symmetric
    around 0 under the null. Student's t of each column is put on the scale of its p-value, so that groups of different
    sizes can be compared.

    Args:
        groups: [items, conditions] each, paired differences; groups have items of their own. NaN: no value.
        seed: of the signs.
        draws: number of sign flips.

    Returns:
        One array [conditions] a group; NaN where a column has fewer than two values.
    """
    chance = np.random.default_rng(seed)
    observed, drawn = [], []
    for group in groups:
        signs = chance.choice([-1.0, 1.0], size=(draws, len(group)))
        here, under = _surprise(group, np.ones((1, len(group)))), _surprise(group, signs)
        observed.append(here[0])
        drawn.append(under)
    found = adjusted(np.concatenate(observed), np.concatenate(drawn, axis=1))
    return np.split(found, np.cumsum([len(one) for one in observed])[:-1])


def _surprise(values: Floats, signs: Floats) -> Floats:
    """Return [draws, conditions], -log p of Student's two-sided test of each column under each row of signs."""
    there = ~np.isnan(values)
    kept, count = np.where(there, values, 0.0), there.sum(0)
    enough = np.where(count > 1, count, 2)
    means = signs @ kept / enough
    squares = (kept**2).sum(0) / enough
    # Signs leave the squares as they are, so that t grows with this share alone. Rounded, equal shares stay equal: near
    # 1 the subtraction below would blow up the rounding of the sums, and the observed signs would beat themselves.
    share = np.minimum(np.round(np.abs(means) / np.sqrt(np.where(squares > 0, squares, 1.0)), 9), 1.0)
    t = share * np.sqrt((enough - 1) / np.maximum(1 - share**2, 1e-12))
    found = -(np.log(2) + stats.t.logsf(t, enough - 1))
    return np.asarray(np.where((count > 1) & (squares > 0), found, np.where(count > 1, 0.0, np.nan)))


def labels(wanted: NDArray[np.bool_], groups: Sequence[str], draws: int, seed: int = 0) -> NDArray[np.bool_]:
    """Return [draws, answers], labels permuted as questions allow.

    Within a question whose answers have both labels they are shuffled; questions whose answers all have one label
    exchange it among each other.

    Args:
        wanted: [answers].
        groups: each answer's question.
        draws: number of permutations.
        seed: of the permutations.
    """
    chance = np.random.default_rng(seed)
    names = np.asarray(groups)
    members = [np.flatnonzero(names == name) for name in dict.fromkeys(groups)]
    mixed = [rows for rows in members if 0 < wanted[rows].sum() < len(rows)]
    whole = [rows for rows in members if not 0 < wanted[rows].sum() < len(rows)]
    kept = np.array([wanted[rows[0]] for rows in whole], dtype=bool)
    found = np.tile(wanted, (draws, 1))
    for row in found:
        for rows in mixed:
            row[rows] = chance.permutation(wanted[rows])
        for rows, label in zip(whole, chance.permutation(kept), strict=True):
            row[rows] = label
    return found
