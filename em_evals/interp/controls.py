"""The arms of a study: a direction, a random one of equal length, and the control's at equal length.

Equal length at every layer, so that arms differ in where they point and in nothing else.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from em_evals.content import directions
from em_evals.content.cards import ResolvedCard
from em_evals.content.directions import Direction
from em_evals.errors import EmEvalsError


def random_like(direction: Direction, seed: int) -> Direction:
    """At each layer a vector of the direction's length, evenly distributed over all ways to point."""
    chance = np.random.default_rng(seed)
    drawn = chance.normal(size=direction.vectors.shape).astype(np.float32)
    how = {"how": "random, of equal length", "seed": seed}
    return replace(
        direction,
        vectors=_lengthened(replace(direction, vectors=drawn), direction),
        metadata={key: direction.metadata[key] for key in ("base", "revision") if key in direction.metadata}
        | how,
    )


def as_long_as(direction: Direction, model: Direction) -> Direction:
    """The same ways to point, at another direction's lengths and with its mean norms and base means.

    With `relative` an intervention's length is `mean_norm`'s, and with `reference: mean` its aim is `base_mean`: those
    of the texts that the control was found on would make another intervention of it.

    Raises:
        EmEvalsError: they were made for bases of another shape.
    """
    if direction.vectors.shape != model.vectors.shape:
        raise EmEvalsError(
            f"one direction has {direction.layers} layers of width {direction.width}, the other {model.layers} of "
            f"{model.width}: they were made for different bases."
        )
    return replace(
        direction,
        vectors=_lengthened(direction, model),
        base_mean=model.base_mean,
        mean_norm=model.mean_norm,
    )


def read_for(name: str | Direction, card: ResolvedCard) -> Direction:
    """A direction by name or path, or in memory, made for the card's base.

    Raises:
        EmEvalsError: there is none, or it was made for another base.
    """
    directions.check_base(name, card.card.base, card.card.revision)
    return directions.get(name)


def _lengthened(direction: Direction, model: Direction) -> directions.Floats:
    wanted = np.linalg.norm(model.vectors, axis=1, keepdims=True)
    return np.asarray(directions.unit(direction) * wanted, dtype=np.float32)
