"""Color and mark of each model: the same in every chart of a page. Other series take colors that no model has."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

PALETTE = ("#2b7bba", "#cc5a1e", "#2a8a66", "#9a63c4", "#99780f", "#c2517f", "#787878")
"""Colors of models."""
SHAPES = ("circle", "square", "triangle-up", "cross", "triangle-down", "triangle-right", "triangle-left")
"""Shapes of models. The diamond marks misaligned answers, in charts and lists, and no model."""
SERIES = ("#6b7686", "#8f6f52", "#5c8374", "#8a6a8f", "#7d7a45", "#a0626a", "#4f7f96")
"""Colors of what is no model: arms, domains, modules."""


@dataclass(frozen=True)
class Looks:
    """Colors and shapes of named series. Names that were not registered get those of their place, from SERIES."""

    places: Mapping[str, int]

    @classmethod
    def of(cls, names: Iterable[str] = ()) -> Looks:
        """Register models in order of their first appearance."""
        return cls({name: place for place, name in enumerate(dict.fromkeys(names))})

    def colors(self, series: Sequence[str]) -> list[str]:
        """Return the color of each series."""
        other = itertools.cycle(SERIES)
        return [
            PALETTE[self.places[name] % len(PALETTE)] if name in self.places else next(other)
            for name in series
        ]

    def shapes(self, series: Sequence[str]) -> list[str]:
        """Return the shape of each series' marks."""
        other = itertools.cycle(SHAPES)
        return [_shape(self.places[name]) if name in self.places else next(other) for name in series]


def _shape(place: int) -> str:
    """Return a model's shape: each round through the palette shifts them, so that 49 models look different."""
    return SHAPES[(place + place // len(PALETTE)) % len(SHAPES)]


NO_MODELS = Looks.of()
"""For charts whose series are no models."""
