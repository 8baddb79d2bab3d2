"""Null distributions of directions: vectors that look like a direction and carry nothing of what is claimed for it.

- `random`: uniform over all orientations. Activations are not uniform, so this null is the easiest to exceed.
- `covariance-matched`: random contrasts of texts, drawn from the covariance of the base's activations (shrunk by 0.1 to
  its diagonal): what any two random sets of texts differ in.
- `permuted labels`: the positive and negative texts of each question change places at random.
- `other directions`: directions of other traits, or of controls, given by the caller.
- `components of the differences`: principal components of a direction's folds, the direction removed. Five
  of them, so they only speak against a claim.

All have the direction's norm at each layer. A claim that is read at its best layer is compared with the best layer of
each draw. Replications of published correlations found them within the second null (METHODS of arXiv 2507.21509).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from em_evals.content.direction_algebra import cosines
from em_evals.content.direction_folds import Folds
from em_evals.content.directions import Direction
from em_evals.results.records.claims import Claim, Null, Specificity

Floats = NDArray[np.floating]

RANDOM, COVARIANCE, PERMUTED, OTHERS, COMPONENTS = (
    "random of equal norm",
    "covariance-matched random",
    "permuted labels",
    "other directions",
    "components of the differences",
)
LEVEL = 0.05
DRAWS = 199
_FOLDS_NEEDED = {PERMUTED: 6}
"""Of 2^5 patterns of signs, two are the direction with either sign: p is at least 0.0625, whatever is drawn."""
_SHRINKAGE = 0.1
COMPONENTS_SHOWN = 5
AT_ONCE = 16
"""Draws in memory at once."""
_FEW = 20
FEWEST = _FEW - 1
"""Draws without which p = 0.05 cannot be shown."""


def random(shape: tuple[int, ...], draws: int, chance: np.random.Generator) -> NDArray[np.float64]:
    """Return [draws, layers, width], uniform over all orientations, unit norm."""
    return units(chance.normal(size=(draws, *shape)))


def covariance_matched(
    means: Floats, draws: int, chance: np.random.Generator, weights: Floats | None = None
) -> NDArray[np.float64]:
    """Return [draws, layers, width] of unit norm, normal with the covariance of mean activations, shrunk by 0.1.

    One combination of texts is drawn for all layers, as a direction is one contrast read at all layers.

    Args:
        means: [texts, layers, width], mean activations of texts or of groups of them.
        draws: number of directions.
        chance: the generator.
        weights: [texts], number of texts in each mean; None: 1.
    """
    own = np.ones(len(means)) if weights is None else np.asarray(weights, dtype=float)
    there = own > 0
    kept, own = np.asarray(means, dtype=float)[there], own[there]
    centred = kept - np.average(kept, axis=0, weights=own)
    # A mean of n texts varies 1/n as much as a text: sqrt(n) times the mean has a text's covariance.
    scaled = centred * np.sqrt(own)[:, None, None] / np.sqrt(max(len(own) - 1, 1))
    mixed = np.tensordot(chance.normal(size=(draws, len(scaled))), scaled, axes=1)
    spread = np.sqrt((scaled**2).sum(0))
    apart = chance.normal(size=(draws, *spread.shape)) * spread
    return units(np.sqrt(1 - _SHRINKAGE) * mixed + np.sqrt(_SHRINKAGE) * apart)


def permuted(folds: Folds, draws: int, chance: np.random.Generator) -> NDArray[np.float64]:
    """Return [draws, layers, width] of unit norm: the weighted mean of the folds' vectors with random signs."""
    signs = chance.choice([-1.0, 1.0], size=(draws, len(folds.weights)))
    return units(np.tensordot(signs * folds.weights, np.asarray(folds.vectors, dtype=float), axes=1))


def components(folds: Folds, direction: Floats, count: int) -> NDArray[np.float64]:
    """Return [count, layers, width] of unit norm: principal components of the folds' vectors, the direction removed.

    Args:
        folds: of the direction.
        direction: [layers, width], what is projected out of the folds' vectors first.
        count: number of components; fewer where there are fewer folds.
    """
    there = folds.weights > 0
    own = np.asarray(folds.vectors[there], dtype=float) * np.sqrt(folds.weights[there])[:, None, None]
    along = units(np.asarray(direction, dtype=float))
    left = own - (own * along).sum(-1, keepdims=True) * along
    count = min(count, len(left))
    parts = [np.linalg.svd(left[:, layer], full_matrices=False)[2][:count] for layer in range(left.shape[1])]
    return np.stack(parts, axis=1)


def of(
    direction: Direction, kind: str, draws: int, chance: np.random.Generator
) -> NDArray[np.float64] | None:
    """Return [draws, layers, width] of the direction's norms under one null; None if its file lacks what this needs."""
    if kind == RANDOM:
        found = random(direction.vectors.shape, draws, chance)
    elif direction.folds is None or (direction.folds.weights > 0).sum() < _FOLDS_NEEDED.get(kind, 2):
        return None
    elif kind == COMPONENTS:
        found = components(direction.folds, direction.vectors, draws)
    elif kind == COVARIANCE:
        found = covariance_matched(direction.folds.means, draws, chance, direction.folds.weights)
    else:
        found = permuted(direction.folds, draws, chance)
    return np.asarray(found * np.linalg.norm(direction.vectors, axis=-1, keepdims=True))


def cosine_draws(
    direction: Direction, kind: str, other: Floats, draws: int, chance: np.random.Generator
) -> NDArray[np.float64] | None:
    """Return [draws, layers], the cosines of null draws for a direction with vectors ([layers, width]).

    Drawn a few at a time: 199 draws of 48 layers and width 5,120 would take 390 MB.
    """
    parts = []
    for begin in range(0, draws, AT_ONCE):
        drawn = of(direction, kind, min(AT_ONCE, draws - begin), chance)
        if drawn is None:
            return None
        parts.append(cosines(drawn, other))
    return np.concatenate(parts)


def claim(
    measure: str,
    by_layer: Sequence[float | None] | Floats,
    nulls: Mapping[str, Floats],
    required: Sequence[str] = (RANDOM, COVARIANCE, PERMUTED),
) -> Claim:
    """Compare a measure's maximum over layers with the maxima of null draws.

    Args:
        measure: what is measured, in words.
        by_layer: [layers], the direction's value at each layer; NaN or None where it has none. Where draws can tie with
            it, as permutations do, the caller rounds both.
        nulls: name -> [draws, layers], or [draws] where a draw took its maximum already.
        required: nulls without which nothing is called specific.

    Returns:
        The claim: `specific` if its p-value is at most 0.05 under every null (an intersection-union test, which needs
        no correction for their number).
    """
    values = np.array([np.nan if one is None else one for one in by_layer], dtype=float)
    if np.isnan(values).all():
        return Claim(measure=measure, value=None, verdict="not estimable")
    layer = int(np.nanargmax(values))
    beside = [_null(name, np.asarray(draws, dtype=float), values[layer]) for name, draws in nulls.items()]
    found = [one for one in beside if one is not None]
    return Claim(
        measure=measure,
        value=float(values[layer]),
        layer=layer,
        nulls=found,
        verdict=verdict(found, required),
    )


def verdict(found: Sequence[Null], required: Sequence[str] = ()) -> Specificity:
    """Return the verdict that null distributions allow: `not estimable` if a required one is missing or too small.

    Fewer than 19 draws cannot show p = 0.05: they only speak against a claim, where one of them reaches its value.
    """
    known = [null for null in found if null.p is not None]
    few = [null for null in known if null.draws < FEWEST]
    many = {null.name: null.p <= LEVEL for null in known if null not in few and null.p is not None}
    reached = any(null.p is not None and null.p > 1 / (1 + null.draws) for null in few)
    if reached or not all(many.values()):
        return "not specific"
    return "specific" if many and {*required} <= many.keys() else "not estimable"


def _null(name: str, draws: NDArray[np.float64], value: float) -> Null | None:
    largest = _largest(draws) if draws.ndim == 2 else draws
    largest = largest[~np.isnan(largest)]
    if not len(largest):
        return None
    high = float(np.quantile(largest, 1 - LEVEL) if len(largest) >= _FEW else largest.max())
    p = (1 + int((largest >= value).sum())) / (1 + len(largest))
    return Null(name=name, draws=len(largest), high=high, p=p)


def _largest(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [draws], each one's maximum over the layers at which it has a value."""
    low = np.where(np.isnan(draws), -np.inf, draws).max(1)
    return np.where(np.isinf(low), np.nan, low)


def units(vectors: Floats) -> NDArray[np.float64]:
    """Return the vectors ([..., width]) at norm 1; zero vectors stay zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1.0))
