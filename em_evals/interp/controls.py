"""The arms of a study: a direction, a random one of equal norm, and the control's at equal norm.

Norms are equal at every layer, so that arms differ in direction only.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from em_evals.content import direction_algebra, directions
from em_evals.content.cards import ResolvedCard
from em_evals.content.directions import Direction
from em_evals.errors import EmEvalsError


def random_like(direction: Direction, seed: int) -> Direction:
    """Return a random direction, uniform over all orientations, with the direction's norm at each layer."""
    chance = np.random.default_rng(seed)
    drawn = chance.normal(size=direction.vectors.shape).astype(np.float32)
    how = {"how": "random, of equal length", "seed": seed}
    return replace(
        direction,
        vectors=_lengthened(replace(direction, vectors=drawn), direction),
        metadata={key: direction.metadata[key] for key in ("base", "revision") if key in direction.metadata}
        | how,
        folds=None,
    )


def as_long_as(direction: Direction, model: Direction) -> Direction:
    """Return the direction rescaled to another one's norms, with that one's mean norms and base means.

    With `relative` an intervention's length comes from `mean_norm`, and with `reference: mean` its target from
    `base_mean`: those of the control's own texts would make it a different intervention.

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
        folds=None,
    )


def read_for(name: str | Direction, card: ResolvedCard) -> Direction:
    """Load a direction by name or path, or take one in memory; check that it was made for the card's base.

    Raises:
        EmEvalsError: there is no such direction, or it was made for another base.
    """
    directions.check_base(name, card.card.base, card.card.revision)
    return directions.get(name)


def _lengthened(direction: Direction, model: Direction) -> directions.Floats:
    wanted = np.linalg.norm(model.vectors, axis=1, keepdims=True)
    return np.asarray(direction_algebra.unit(direction) * wanted, dtype=np.float32)
