"""Summarize a direction layer by layer: its norm, and measures of its reliability."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from em_evals.content.directions import Direction
from em_evals.errors import EmEvalsError

_TRUST = ("held_out_cosine", "reliability", "prompt_cosine")


def by_layer(direction: Direction) -> dict[str, Sequence[float | None]]:
    """Return columns of numbers by layer, with their headings; None where a layer has no value.

    `length` is the vector's norm, and `of mean norm` its ratio to the activations' mean norm; `held_out_cosine`,
    `reliability`, `prompt_cosine` (of traits) and `movement of CARD` are included if the extraction measured them.
    """
    lengths = np.linalg.norm(direction.vectors, axis=1)
    shares = lengths / np.maximum(direction.mean_norm, 1e-9)
    columns: dict[str, Sequence[float | None]] = {"length": lengths.tolist(), "of mean norm": shares.tolist()}
    columns |= {name: direction.metadata[name] for name in _TRUST if direction.metadata.get(name)}
    moved = direction.metadata.get("movement", {})
    return columns | {f"movement of {name}": values for name, values in moved.items()}


def chosen_layer(direction: Direction) -> int:
    """Return the layer that was chosen by steering (`trait extract --choose-layer`), else the most trusted one.

    Raises:
        EmEvalsError: the direction's metadata do not tell.
    """
    if (layer := direction.metadata.get("layer")) is not None:
        return int(layer)
    found = trust(direction)
    if found is None:
        raise EmEvalsError("this direction has no reliability by layer: choose a --layer.")
    return int(np.argmax(found))


def trust(direction: Direction) -> NDArray[np.float64] | None:
    """Return [layers], by which layers are compared; None where the extraction measured nothing.

    The reliability over questions; for a trait from its prompts, times `prompt_cosine` where that is positive at any
    layer. Early blocks repeat the words of the system prompts: other questions give the same direction there, other
    prompts for the same trait another one.
    """
    reliability = direction.metadata.get("reliability")
    if not reliability:
        return None
    found = np.array(reliability, dtype=float)
    over_prompts = np.clip(np.array(direction.metadata.get("prompt_cosine") or [0.0], dtype=float), 0, None)
    return found * over_prompts if over_prompts.any() else found


def label(direction: Direction, number: int) -> str:
    """Return a direction's label in charts: its number and card, since several can have the same card."""
    return f"{number}: {direction.metadata.get('card') or direction.metadata.get('how') or 'direction'}"
