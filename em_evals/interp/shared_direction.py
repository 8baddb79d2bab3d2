"""Do two organisms share a direction beyond what their controls share? Cosines corrected for noise, with intervals.

A direction is a mean over questions. Its noise makes cosines too small, and organisms that read the same questions
share noise, which makes them too large; stats/noisy_vectors.py corrects both. Folds of questions are the units of the
bootstrap: each resample draws the same folds for all four directions, so what questions have in common cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from em_evals.content.direction_algebra import cosine, cosines
from em_evals.content.directions import Direction
from em_evals.interp import nulls
from em_evals.results.records.base import Measured
from em_evals.results.records.claims import Claim
from em_evals.results.records.studies import SharedDirection
from em_evals.stats import noisy_vectors
from em_evals.stats.noisy_vectors import Estimate, Folds, Pair

Floats = NDArray[np.floating]


def corrected(one: Direction, other: Direction) -> list[float | None]:
    """Return [layers], the cosines corrected for noise; None where either is lost in it. Empty without folds."""
    pair = _pair(one, other)
    return [] if pair is None else [None if np.isnan(value) else float(value) for value in pair.by_layer()]


def shared(
    organisms: Mapping[str, Direction], controls: Mapping[str, Direction], seed: int = 0
) -> list[SharedDirection]:
    """Compare each pair of organisms with the pair of their own controls; and, with several pairs, their mean.

    Args:
        organisms: card -> direction.
        controls: card -> its own control's direction; empty if they have none of their own.
        seed: of the bootstrap and of the null draws.
    """
    names = list(combinations(organisms, 2))
    found = [
        _compared([(one, other)], organisms, controls, seed).model_copy(
            update={"claim": cosine_claim(organisms[one], organisms[other], [*controls.values()], seed)}
        )
        for one, other in names
    ]
    if len(names) > 1:
        found.append(_compared(names, organisms, controls, seed))
    return found


def _compared(
    names: Sequence[tuple[str, str]],
    organisms: Mapping[str, Direction],
    controls: Mapping[str, Direction],
    seed: int,
) -> SharedDirection:
    """Return the mean corrected cosine of these pairs of organisms, of their controls, and the difference."""
    one, other = (
        names[0] if len(names) == 1 else ("all organisms", f"each other (mean of {len(names)} pairs)")
    )
    own = [_pair(organisms[a], organisms[b]) for a, b in names]
    if None in own:
        return SharedDirection(
            one=one, other=other, organisms=Measured(value=None, interval=(None, None), n=0)
        )
    pairs = [pair for pair in own if pair is not None]
    there = _weights(pairs)
    found = {"organisms": noisy_vectors.bootstrap(lambda times: _mean(pairs, times), there, seed)}
    beside = [
        pair
        for a, b in names
        if a in controls and b in controls and (pair := _pair(controls[a], controls[b])) is not None
    ]
    if len(beside) == len(pairs):
        there = np.concatenate([there, _weights(beside)])
        found["controls"] = noisy_vectors.bootstrap(lambda times: _mean(beside, times), there, seed)
        found["difference"] = noisy_vectors.bootstrap(
            lambda times: _mean(pairs, times) - _mean(beside, times), there, seed
        )
    told = {name: _measured(part, 2 if name == "difference" else 1) for name, part in found.items()}
    return SharedDirection.model_validate({"one": one, "other": other, **told})


def _weights(pairs: Sequence[Pair]) -> Floats:
    return np.stack([side.weights for pair in pairs for side in (pair.one, pair.other)])


def _mean(pairs: Sequence[Pair], times: Floats) -> NDArray[np.float64]:
    return np.asarray(np.mean([pair.over_layers(times) for pair in pairs], axis=0))


def _measured(one: Estimate, largest: float) -> Measured:
    """Return an estimate within the bounds of its scale; a corrected cosine can exceed 1 by noise."""
    low, high = (float(np.clip(end, -largest, largest)) for end in one.interval)
    return Measured(value=float(np.clip(one.value, -largest, largest)), interval=(low, high), n=one.folds)


def _pair(one: Direction, other: Direction) -> Pair | None:
    if one.folds is None or other.folds is None:
        return None
    sides = [Folds(part.folds.vectors, part.folds.weights) for part in (one, other) if part.folds is not None]
    return Pair(sides[0], sides[1], np.maximum(one.mean_norm.astype(float) ** 2, 1e-12))


def cosine_claim(one: Direction, other: Direction, others: Sequence[Direction], seed: int = 0) -> Claim:
    """Compare the largest cosine over layers with null draws for one of the two, and with other directions.

    Args:
        one: a direction; its file's folds make two of the nulls.
        other: the direction that it is compared with.
        others: directions of the same base that should be less like `other`: controls, other traits.
        seed: of the draws.
    """
    chance = np.random.default_rng(seed)
    found = {
        kind: drawn
        for kind in (nulls.RANDOM, nulls.COVARIANCE, nulls.PERMUTED)
        if (drawn := nulls.cosine_draws(one, kind, other.vectors, nulls.DRAWS, chance)) is not None
    }
    if others:
        found[nulls.OTHERS] = np.stack([cosines(part.vectors, other.vectors) for part in others])
    return nulls.claim("largest cosine over layers", cosine(one, other), found)
