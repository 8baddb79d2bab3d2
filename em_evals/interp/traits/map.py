"""The geometry of traits: cosines of their directions with intervals, clusters, and how many dimensions they fill.

Directions that were extracted from system prompts resemble each other whatever the trait: all are differences of
instructions. So nothing here is read without its null: random sets and covariance-matched random sets of as many
directions, halves of the questions, permuted kinds. Geometry of personality traits: arXiv 2412.10427.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from em_evals.content import direction_algebra
from em_evals.content.direction_summary import trust
from em_evals.content.directions import Direction
from em_evals.errors import EmEvalsError, nearest
from em_evals.interp import nulls
from em_evals.interp.traits.separation import NARROW, separations
from em_evals.results.records.base import Measured
from em_evals.results.records.claims import Claim, Null, Specificity
from em_evals.results.records.traits import Dimensions, TraitCosine, TraitMap
from em_evals.stats import noisy_vectors

Floats = NDArray[np.floating]

_DRAWS = 199
_LEAST = 3


def trait_map(
    given: Mapping[str, Direction],
    layer: int | None = None,
    seed: int = 0,
    narrow: Collection[str] = (),
) -> TraitMap:
    """Describe the geometry of directions of one base.

    Args:
        given: name -> direction, three or more.
        layer: the decoder block; None: the one with the largest median of `direction_summary.trust`.
        seed: of bootstraps and null draws.
        narrow: names of those that are narrow concepts, as the advice of a domain.

    Raises:
        EmEvalsError: fewer than three directions, directions of different bases, no such layer, no such name, or a
            direction that is zero at the layer.
    """
    if len(given) < _LEAST:
        raise EmEvalsError(f"a map needs {_LEAST} directions or more, and {len(given)} were given.")
    for one, other in combinations(given.values(), 2):
        direction_algebra.cosine(one, other)  # refuses other bases
    depth = next(iter(given.values())).layers
    notes = []
    if layer is None:
        layer = _layer(given)
        notes.append(
            f"layer {layer} was chosen: there the median reliability of these directions is largest (over questions; "
            "times the agreement of system prompts, where it is known)."
        )
    if not 0 <= layer < depth:
        raise EmEvalsError(f"there is no layer {layer}; these directions' are 0 to {depth - 1}.")
    if zero := [name for name, one in given.items() if not np.any(one.vectors[layer])]:
        raise EmEvalsError(
            f"{zero[0]} is zero at layer {layer}, and a zero vector has no cosine: choose another --layer, or leave it "
            "out."
        )
    units = np.stack([direction_algebra.unit(one)[layer] for one in given.values()]).astype(float)
    cosines = units @ units.T
    order, merges = _clusters(cosines)
    names = list(given)
    if unknown := [name for name in narrow if name not in given]:
        raise EmEvalsError(f"there is no '{unknown[0]}' among these directions; {nearest(unknown[0], given)}")
    kinds = {
        name: NARROW if name in narrow else str(one.metadata.get("kind", "")) for name, one in given.items()
    }
    if missing := [name for name, one in given.items() if one.folds is None]:
        notes.append(f"no folds, so no corrected cosines: {', '.join(missing)}.")
    ordered = {names[i]: given[names[i]] for i in order}
    return TraitMap(
        base=str(next(iter(given.values())).metadata.get("base", "")),
        layer=layer,
        names=list(ordered),
        kinds=kinds,
        reliability={name: _reliability(one, layer) for name, one in ordered.items()},
        cosines=_cosines(ordered, layer, seed),
        merges=merges,
        dimensions=_dimensions(given, units, layer, seed),
        separation=_separation(cosines, [kinds[name] for name in names], seed),
        separations=separations(given, kinds, layer, seed),
        specific={name: _specific(name, given, layer) for name in ordered},
        notes=notes,
        provenance={name: one.digest for name, one in given.items()} | {"seed": str(seed)},
    )


def _layer(given: Mapping[str, Direction]) -> int:
    known = [found for one in given.values() if (found := trust(one)) is not None]
    if not known:
        raise EmEvalsError("none of these directions has a reliability by layer: choose a --layer.")
    return int(np.median(np.stack(known), axis=0).argmax())


def _reliability(one: Direction, layer: int) -> float | None:
    found = one.metadata.get("reliability")
    return float(found[layer]) if found else None


def _clusters(cosines: Floats) -> tuple[list[int], list[tuple[int, int, float]]]:
    """Return the order of the leaves, and the merges, of average linkage on 1 - cosine."""
    apart = np.clip(1 - cosines, 0, 2)
    np.fill_diagonal(apart, 0)
    linked = hierarchy.linkage(squareform(apart, checks=False), "average")
    merges = [(int(a), int(b), float(distance)) for a, b, distance, _ in linked]
    order = [int(i) for i in hierarchy.leaves_list(linked)]
    # Merges name leaves by their places in the returned order.
    place = {leaf: number for number, leaf in enumerate(order)} | {
        i: i for i in range(len(order), 2 * len(order))
    }
    return order, [(place[a], place[b], distance) for a, b, distance in merges]


def _cosines(given: Mapping[str, Direction], layer: int, seed: int) -> list[TraitCosine]:
    found = []
    for (a, one), (b, other) in combinations(given.items(), 2):
        value = float(direction_algebra.cosines(one.vectors[layer], other.vectors[layer]))
        corrected = Measured(value=None, interval=(None, None), n=0)
        if one.folds is not None and other.folds is not None:
            sides = [
                noisy_vectors.Folds(part.folds.vectors[:, [layer]], part.folds.weights)
                for part in (one, other)
                if part.folds is not None
            ]
            pair = noisy_vectors.Pair(sides[0], sides[1], np.ones(1))
            weights = np.stack([one.folds.weights, other.folds.weights])
            estimate = noisy_vectors.bootstrap(pair.over_layers, weights, seed)
            low, high = (float(np.clip(end, -1, 1)) for end in estimate.interval)
            corrected = Measured(
                value=float(np.clip(estimate.value, -1, 1)), interval=(low, high), n=estimate.folds
            )
        found.append(TraitCosine(one=a, other=b, cosine=value, corrected=corrected))
    return found


def participation(units: Floats) -> tuple[float, NDArray[np.float64]]:
    """Return the participation ratio of unit vectors ([directions, width]) and the shares of their components."""
    values = np.clip(np.linalg.eigvalsh(units @ units.T)[::-1], 0, None)
    return float(values.sum() ** 2 / (values**2).sum()), values / values.sum()


def _dimensions(given: Mapping[str, Direction], units: Floats, layer: int, seed: int) -> Dimensions:
    value, shares = participation(units)
    chance = np.random.default_rng(seed)
    drawn = {nulls.RANDOM: [participation(_random(units, chance))[0] for _ in range(_DRAWS)]}
    with_folds = [one.folds for one in given.values() if one.folds is not None]
    halves: tuple[float | None, float | None] = (None, None)
    if len(with_folds) == len(given):
        means = np.concatenate([folds.means[folds.weights > 0][:, [layer]] for folds in with_folds])
        weights = np.concatenate([folds.weights[folds.weights > 0] for folds in with_folds])
        drawn[nulls.COVARIANCE] = [
            participation(nulls.covariance_matched(means, len(units), chance, weights)[:, 0])[0]
            for _ in range(_DRAWS)
        ]
        even, odd = (
            participation(
                nulls.units(
                    np.stack(
                        [
                            np.tensordot(folds.weights[part::2], folds.vectors[part::2, layer], axes=1)
                            for folds in with_folds
                        ]
                    )
                )
            )[0]
            for part in (0, 1)
        )
        halves = (even, odd)
    return Dimensions(
        value=value,
        shares=[float(share) for share in shares],
        halves=halves,
        nulls=[
            Null(
                name=name,
                draws=len(values),
                high=float(np.quantile(values, 0.05)),
                p=(1 + sum(one <= value for one in values)) / (1 + len(values)),
            )
            for name, values in drawn.items()
        ],
    )


def _random(units: Floats, chance: np.random.Generator) -> NDArray[np.float64]:
    return nulls.units(chance.normal(size=units.shape))


def _separation(cosines: Floats, kinds: list[str], seed: int) -> Claim | None:
    """Compare mean |cosine| within kinds minus between them with permuted kinds; None without two kinds of two."""
    own = np.array(kinds)
    if len({*kinds}) < 2 or min(kinds.count(kind) for kind in kinds) < 2:
        return None
    upper = np.triu(np.ones(cosines.shape, dtype=bool), 1)

    def apart(labels: NDArray[np.str_]) -> float:
        same = labels[:, None] == labels[None]
        size = np.abs(cosines)
        return round(float(size[upper & same].mean() - size[upper & ~same].mean()), 9)

    chance = np.random.default_rng(seed)
    drawn = np.array([apart(chance.permutation(own)) for _ in range(10 * _DRAWS)])
    found = nulls.claim(
        "mean |cosine| within kinds of traits minus between them", [apart(own)], {"permuted kinds": drawn}, ()
    )
    return found.model_copy(update={"layer": None})


def _specific(name: str, given: Mapping[str, Direction], layer: int) -> Specificity:
    """Return the verdict of a trait's direction: its held-out nulls, and other traits as near as its own other half."""
    own = given[name]
    claim = own.metadata.get("claim")
    held_out = own.metadata.get("held_out_cosine")
    if not claim or not held_out:
        return "not estimable"
    verdict = Claim.model_validate(claim).verdict
    others = [
        abs(float(direction_algebra.cosines(own.vectors[layer], other.vectors[layer])))
        for key, other in given.items()
        if key != name
    ]
    if verdict == "specific" and max(others) >= held_out[layer]:
        return "not specific"
    return verdict
