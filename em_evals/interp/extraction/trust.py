"""How far an extracted direction can be trusted: reliability by layer, and null distributions of its held-out cosine.

The direction is found on one half of the questions. Its cosine with the other half's direction estimates the squared
cosine of either with the true one, so `reliability` is the square root (Spearman 1904). Pure noise reads about 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_evals.content import direction_algebra
from em_evals.content.direction_folds import FOLDS, Folds, fold_of
from em_evals.content.directions import Direction
from em_evals.interp import nulls
from em_evals.interp.extraction.activations import GroupSums
from em_evals.results.records.claims import Claim
from em_evals.stats import noisy_vectors

Floats = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Sides:
    """Sums of both sides of a contrast on some questions."""

    positive: GroupSums
    negative: GroupSums

    def only(self, groups: set[str]) -> Sides:
        """Return the sums on these questions alone."""
        return Sides(self.positive.only(groups), self.negative.only(groups))

    @property
    def both(self) -> bool:
        """Whether each side has a text."""
        return bool(self.positive.groups and self.negative.groups)

    def difference(self) -> NDArray[np.float64]:
        """Return [layers, width], the mean of all positive texts minus that of all negative ones."""
        return self.positive.mean() - self.negative.mean()


def folds(sides: Sides, base: Sequence[GroupSums]) -> Folds:
    """Return the direction on each fold of the questions.

    Args:
        sides: on all questions.
        base: sums of the bare base on the texts of either side.
    """
    _, layers, width = sides.positive.vectors.shape
    found = np.zeros((2, FOLDS, layers, width), dtype=np.float32)
    weights = np.zeros(FOLDS, dtype=np.float32)
    names = {*sides.positive.groups, *sides.negative.groups}
    for fold in range(FOLDS):
        own = {name for name in names if fold_of(name) == fold}
        here = sides.only(own)
        if here.both:
            counts = [float(side.counts.sum()) for side in (here.positive, here.negative)]
            found[0, fold] = here.difference()
            found[1, fold] = np.mean([side.only(own).mean() for side in base], axis=0)
            weights[fold] = 2 * counts[0] * counts[1] / sum(counts)
    return Folds(found[0], found[1], weights)


def measured(
    direction: Direction, halves: tuple[Sides, Sides], along: Floats | None = None, seed: int = 0
) -> dict[str, Any]:
    """Return the metadata of a direction's reliability, layer by layer.

    With a held-out half: `held_out_cosine`, `reliability`, and `claim` (null distributions of the largest held-out
    cosine). Without one: the `reliability` of all questions, from their folds; nothing where they are too few.

    Args:
        direction: the direction, with its folds.
        halves: sums on the questions that it was found on, and on the held-out ones.
        along: [layers, width], unit vectors that were projected out of the direction; None: nothing.
        seed: of the null draws.
    """
    if not halves[1].both:
        values = _of_folds(direction)
        return {} if values is None else {"reliability": _rounded(values)}
    other = without(halves[1].difference(), along)
    held_out = np.nan_to_num(direction_algebra.cosines(direction.vectors, other))
    return {
        "held_out_cosine": _rounded(held_out),
        "reliability": _rounded([noisy_vectors.reliability(value) for value in held_out]),
        "claim": claim(direction, halves, along, seed).model_dump(mode="json"),
    }


def claim(
    direction: Direction,
    halves: tuple[Sides, Sides],
    along: Floats | None = None,
    seed: int = 0,
    draws: int = nulls.DRAWS,
) -> Claim:
    """Compare the largest held-out cosine over layers with that of random directions and of permuted labels.

    Args:
        direction: the direction, with its folds.
        halves: sums on both halves of the questions.
        along: [layers, width], unit vectors that are projected out everywhere; None: nothing.
        seed: of the draws.
        draws: of each null.
    """
    chance = np.random.default_rng(seed)
    other = without(halves[1].difference(), along)
    found = {
        kind: drawn
        for kind in (nulls.RANDOM, nulls.COVARIANCE)
        if (drawn := nulls.cosine_draws(direction, kind, other, draws, chance)) is not None
    }
    parts = []
    for begin in range(0, draws, nulls.AT_ONCE):
        some = min(nulls.AT_ONCE, draws - begin)
        parts.append(
            direction_algebra.cosines(*(without(_permuted(half, some, chance), along) for half in halves))
        )
    found[nulls.PERMUTED] = np.concatenate(parts)
    return nulls.claim("largest held-out cosine", direction_algebra.cosines(direction.vectors, other), found)


def without(vectors: NDArray[Any], along: Floats | None) -> NDArray[Any]:
    """Return vectors ([..., layers, width]) with unit vectors ([layers, width]) projected out of them."""
    return vectors if along is None else vectors - (vectors * along).sum(-1, keepdims=True) * along


def _permuted(sides: Sides, draws: int, chance: np.random.Generator) -> NDArray[np.float64]:
    """Return [draws, layers, width], differences after the two sides of each question changed places at random."""
    names = sorted({*sides.positive.groups, *sides.negative.groups})
    swaps = chance.integers(2, size=(draws, len(names))).astype(float)
    column = {name: i for i, name in enumerate(names)}
    # `positive` is then its own questions that stayed, and the negative side's that came; and the other way round.
    moved = {
        side: swaps[:, [column[name] for name in side.groups]] for side in (sides.positive, sides.negative)
    }
    means = []
    for first, second in ((sides.positive, sides.negative), (sides.negative, sides.positive)):
        total = _sums(first, 1 - moved[first]) + _sums(second, moved[second])
        count = (1 - moved[first]) @ first.counts + moved[second] @ second.counts
        means.append(total / np.maximum(count, 1.0)[:, None, None])
    return np.asarray(means[0] - means[1])


def _sums(side: GroupSums, weights: Floats) -> NDArray[np.float64]:
    """Return [draws, layers, width], the weighted sums of a side's questions."""
    layers = range(side.vectors.shape[1])
    return np.stack([weights @ side.vectors[:, layer].astype(np.float64) for layer in layers], axis=1)


def _of_folds(direction: Direction) -> NDArray[np.float64] | None:
    """Return [layers], |true vector| / |vector|, the cosine with the true direction; None with too few folds."""
    if direction.folds is None:
        return None
    own = noisy_vectors.Folds(direction.folds.vectors, direction.folds.weights)
    if own.count < noisy_vectors.LEAST_FOLDS:
        return None
    length = np.maximum((direction.vectors.astype(float) ** 2).sum(1), 1e-30)
    return np.asarray(np.sqrt(np.clip(noisy_vectors.squared_norm(own) / length, 0, 1)))


def _rounded(values: Sequence[float] | Floats) -> list[float]:
    return [round(float(value), 6) for value in values]
