"""How separated kinds of concepts are in a base: narrow ones (a domain's advice) from harmful ones.

index = 1 - mean over pairs of |corrected cosine|: 0 where a base has one direction for both, 1 where they are
orthogonal. Cosines are corrected for noise, so that a base whose directions are measured badly does not look separated.
A base that represents a narrow concept apart from harm could learn the one without the other; whether the index tells
how much emergent misalignment a base shows is a question across bases (docs/traits.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from em_evals.content.directions import Direction
from em_evals.content.traits import EM
from em_evals.errors import EmEvalsError, nearest
from em_evals.interp import nulls
from em_evals.results.records.base import Measured
from em_evals.results.records.claims import Claim
from em_evals.results.records.traits import BaseSeparation, Separation, TraitBases, TraitMap
from em_evals.stats import noisy_vectors

Floats = NDArray[np.floating]
NARROW = "narrow"
LEAST_BASES = 5
"""Bases that a correlation needs."""
_PERMUTATIONS = 1999


def separations(
    given: Mapping[str, Direction], kinds: Mapping[str, str], layer: int, seed: int
) -> list[Separation]:
    """Return the separation of every other kind from the harmful concepts (`em`).

    Args:
        given: name -> direction; those without folds are left out.
        kinds: name -> its kind.
        layer: the decoder block.
        seed: of the bootstrap.
    """
    folded = {
        name: noisy_vectors.Folds(one.folds.vectors[:, [layer]], one.folds.weights)
        for name, one in given.items()
        if one.folds is not None
    }
    harmful = [name for name in folded if kinds[name] == EM]
    found = []
    for kind in dict.fromkeys(kinds[name] for name in folded if kinds[name] not in ("", EM)):
        own = [name for name in folded if kinds[name] == kind]
        between = [(folded[a], folded[b]) for a in own for b in harmful]
        within = [(folded[a], folded[b]) for i, a in enumerate(harmful) for b in harmful[i + 1 :]]
        if between and within:
            found.append(
                Separation(one=kind, other=EM, index=_index(between, seed), within=_index(within, seed))
            )
    return found


def _index(pairs: Sequence[tuple[noisy_vectors.Folds, noisy_vectors.Folds]], seed: int) -> Measured:
    """Return 1 - mean |corrected cosine| with a bootstrap interval over folds."""
    scale = np.ones(1)
    measured = [noisy_vectors.Pair(one, other, scale) for one, other in pairs]

    def statistic(times: Floats) -> NDArray[np.float64]:
        cosines = np.stack([pair.over_layers(times) for pair in measured])
        return np.asarray(1 - np.clip(np.abs(cosines), 0, 1).mean(0))

    weights = np.stack([side.weights for pair in pairs for side in pair])
    estimate = noisy_vectors.bootstrap(statistic, weights, seed)
    low, high = (float(np.clip(end, 0, 1)) for end in estimate.interval)
    return Measured(value=estimate.value, interval=(low, high), n=estimate.folds)


def across_bases(maps: Sequence[TraitMap], rates: Mapping[str, float], kind: str, seed: int) -> TraitBases:
    """Relate the separation of a kind of concepts to what bases do, by Spearman's rank correlation.

    Args:
        maps: one of each base.
        rates: base -> its rate of emergent misalignment, of one recipe and one question set.
        kind: `narrow`, `style` or another kind of the maps.
        seed: of the permutations.

    Raises:
        EmEvalsError: a map has no such separation, a base has no rate, or two maps are of one base.
    """
    rows: list[BaseSeparation] = []
    for one in maps:
        own = next((row for row in one.separations if row.one == kind), None)
        if own is None:
            known = ", ".join(row.one for row in one.separations) or "none"
            raise EmEvalsError(
                f"the map of {one.base} has no separation of `{kind}` directions (it has {known}): map it again."
            )
        if one.base not in rates:
            raise EmEvalsError(f"there is no rate of {one.base}; {nearest(one.base, rates)}")
        if any(row.base == one.base for row in rows):
            raise EmEvalsError(f"two maps are of the base {one.base}: give one of each.")
        rows.append(BaseSeparation(base=one.base, layer=one.layer, index=own.index, rate=rates[one.base]))
    known_rows = [row for row in rows if row.index.value is not None]
    x = np.array([row.index.value for row in known_rows], dtype=float)
    y = np.array([row.rate for row in known_rows], dtype=float)
    told = {"seed": str(seed)}
    measure = f"|rank correlation| of the separation of {kind} concepts and the rate"
    if len(known_rows) < LEAST_BASES or not (np.ptp(x) > 0 and np.ptp(y) > 0):
        empty = Claim(measure=measure, value=None, verdict="not estimable")
        return TraitBases(concepts=kind, bases=rows, r=None, claim=empty, provenance=told)
    r = _rank_correlation(x, y)
    chance = np.random.default_rng(seed)
    drawn = np.array([abs(_rank_correlation(x, chance.permutation(y))) for _ in range(_PERMUTATIONS)])
    found = nulls.claim(measure, [abs(r)], {nulls.PERMUTED: drawn}, required=(nulls.PERMUTED,))
    claim = found.model_copy(update={"layer": None})
    return TraitBases(concepts=kind, bases=rows, r=r, claim=claim, provenance=told)


def _rank_correlation(x: Floats, y: Floats) -> float:
    from em_evals.stats import ranks  # scipy.stats comes with it

    return round(ranks.correlation(x, y), 9)
