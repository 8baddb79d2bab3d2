"""Token ids of several rows: what they begin with in common, and how they are padded to one tensor."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

WORTH_SHARING = 8
"""Tokens that rows must have in common before their beginning is computed once."""


def left_padded(rows: list[tuple[int, ...]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, each [rows, longest], padded with 0 on the left."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, tokens in enumerate(rows):
        ids[i, width - len(tokens) :] = torch.tensor(tokens)
        mask[i, width - len(tokens) :] = 1
    return ids.to(device), mask.to(device)


def common_prefix(rows: list[tuple[int, ...]]) -> int:
    """Count the tokens that all rows begin with; each row keeps at least one of its own, a single row shares none."""
    if len(rows) < 2:
        return 0
    # In lexicographic order all rows lie between these two, so all begin with what these two begin with.
    return min(common(min(rows), max(rows)), min(map(len, rows)) - 1)


def common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Count the tokens that both begin with."""
    differ = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))


def distinct(keys: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """Return the index of each different key's first occurrence, and for each key its place among these.

    >>> distinct(["a", "b", "a"])
    ([0, 1], [0, 1, 0])
    """
    places: dict[Hashable, int] = {}
    owners = [places.setdefault(key, len(places)) for key in keys]
    return [owners.index(place) for place in range(len(places))], owners
