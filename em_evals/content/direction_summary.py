"""What a direction says of itself, layer by layer: its length, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from em_evals.content.directions import Direction

_TRUST = ("stability", "held_out_cosine")


def by_layer(direction: Direction) -> dict[str, Sequence[float | None]]:
    """Columns of numbers by layer, under their headings; None where a layer has none.

    `length` is the vector's norm and `of mean norm` that as a share of the activations' mean norm; `stability`,
    `held_out_cosine` and `movement of CARD` are there where the extraction measured them.
    """
    lengths = np.linalg.norm(direction.vectors, axis=1)
    shares = lengths / np.maximum(direction.mean_norm, 1e-9)
    columns: dict[str, Sequence[float | None]] = {"length": lengths.tolist(), "of mean norm": shares.tolist()}
    columns |= {name: direction.metadata[name] for name in _TRUST if name in direction.metadata}
    moved = direction.metadata.get("movement", {})
    return columns | {f"movement of {name}": values for name, values in moved.items()}


def label(direction: Direction, number: int) -> str:
    """What a chart calls a direction: its card and number, for several may be of one card."""
    return f"{number}: {direction.metadata.get('card') or direction.metadata.get('how') or 'direction'}"
