"""Directions in memory: cosines, sums, parts that others do not explain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_evals.content import adapter_folders
from em_evals.content.directions import Direction, Floats
from em_evals.errors import EmEvalsError

_ROUNDING = 1e-6


def unit(direction: Direction) -> Floats:
    """Return [layers, width]: each layer's vector at norm 1 (a zero vector stays zero)."""
    lengths = np.linalg.norm(direction.vectors, axis=1, keepdims=True)
    return np.asarray(direction.vectors / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)


def beyond_rounding(direction: Direction) -> NDArray[np.bool_]:
    """Return [layers]: where the vector's norm exceeds the rounding error of two equal means, 1e-6 · `mean_norm`."""
    return np.asarray(np.linalg.norm(direction.vectors, axis=1) > _ROUNDING * direction.mean_norm)


def cosine(one: Direction, other: Direction) -> Floats:
    """Return [layers]: the cosine of two directions at each layer; 0 where either vector is zero.

    Raises:
        EmEvalsError: their depths or widths differ.
    """
    _same_shape(one, other)
    return np.asarray(np.nan_to_num(cosines(one.vectors, other.vectors)), dtype=np.float32)


def cosines(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the cosines of vectors along the last axis; NaN where either vector has norm 0."""
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray((a * b).sum(-1) / np.where(lengths > 0, lengths, np.nan))


def random_cosine(width: int) -> float:
    """Return the absolute cosine below which 95% of pairs of random directions lie.

    cos² of two random directions in `width` dimensions is Beta(1/2, (width - 1)/2).
    """
    from scipy import stats

    return float(np.sqrt(stats.beta.ppf(0.95, 0.5, (width - 1) / 2)))


def combine(parts: Sequence[tuple[float, Direction]], **metadata: Any) -> Direction:
    """Return the weighted sum of directions, w1·v1 + w2·v2 + … (weight -1 subtracts); base means are averaged.

    Its `questions` are the union of its parts' questions.

    Raises:
        EmEvalsError: `parts` is empty, or their depths, widths or bases differ.
    """
    if not parts:
        raise EmEvalsError("there is no direction to combine.")
    first = parts[0][1]
    for _, part in parts[1:]:
        _same_shape(first, part)
    vectors, means, norms = (
        sum(weight * getattr(part, name) for weight, part in weighted)
        for name, weighted in (
            ("vectors", parts),
            ("base_mean", [(1 / len(parts), part) for _, part in parts]),
            ("mean_norm", [(1 / len(parts), part) for _, part in parts]),
        )
    )
    kept: dict[str, Any] = {key: first.metadata[key] for key in ("base", "revision") if key in first.metadata}
    kept |= _questions(*(part for _, part in parts))
    return Direction(np.asarray(vectors), np.asarray(means), np.asarray(norms), kept | metadata)


def orthogonalise(direction: Direction, to: Direction) -> Direction:
    """Return v - (v·w) w at each layer, with w the unit vector of `to`: the component that `to` does not explain.

    Its `questions` are the union of both; the removed direction is recorded as `orthogonal_to`.

    Raises:
        EmEvalsError: their depths or widths differ.
    """
    _same_shape(direction, to)
    along = unit(to)
    vectors = direction.vectors - (direction.vectors * along).sum(1, keepdims=True) * along
    removed = {key: to.metadata[key] for key in ("card", "how") if key in to.metadata}
    metadata = direction.metadata | {"orthogonal_to": removed} | _questions(direction, to)
    folds = None if direction.folds is None else direction.folds.without(along)
    return replace(direction, vectors=vectors.astype(np.float32), metadata=metadata, folds=folds)


def found_on(*directions: Direction | None) -> set[str]:
    """Return what directions were extracted from, as recorded in `questions`: ids, texts or their digests."""
    named: set[str] = set()
    for direction in directions:
        questions = direction.metadata.get("questions") if direction is not None else None
        named |= {str(one) for one in questions} if isinstance(questions, list) else set()
    return named


def _questions(*directions: Direction) -> dict[str, Any]:
    """Return the `questions` of a derived direction: a held-out test must exclude the questions of all its parts."""
    named = sorted(found_on(*directions))
    return {"questions": named} if named else {}


def _same_shape(one: Direction, other: Direction) -> None:
    if one.vectors.shape != other.vectors.shape:
        raise EmEvalsError(
            f"these directions do not go together: {one.layers} layers of width {one.width}, and {other.layers} of "
            f"{other.width}; they were made for different bases."
        )
    bases = [str(part.metadata["base"]) for part in (one, other) if part.metadata.get("base")]
    if len(bases) == 2 and not adapter_folders.same_base(*bases):
        raise EmEvalsError(f"these directions were made for different bases, {bases[0]} and {bases[1]}.")
