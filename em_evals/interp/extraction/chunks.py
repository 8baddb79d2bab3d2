"""Texts in chunks that other processes read, and their sums as one process would have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from em_evals.content.cards import ResolvedCard
from em_evals.interp.extraction.activations import GroupSums
from em_evals.interp.extraction.prefix_tree import Text

CHUNK = 256
"""Texts of a chunk. Sums do not depend on how many processes read the chunks."""

Wanted = Sequence[tuple[ResolvedCard | None, Sequence[Text]]]
"""Texts and the card that reads them (None: the bare base)."""
Elsewhere = Callable[[Wanted, Callable[[int], None]], list[GroupSums]]
"""(what to read, called with the number of texts that were read) -> sums of each, in order."""


def chunks(texts: Sequence[Text], size: int = CHUNK) -> list[list[Text]]:
    """Return the texts in lists of `size`, group by group: a chunk's sums are then of few groups, and small."""
    places = _places(texts)
    ordered = sorted(texts, key=lambda text: places[text.group])
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


class Merging:
    """The sums of texts, added up chunk by chunk; groups are in order of first appearance.

    Args:
        texts: all of them.
    """

    def __init__(self, texts: Sequence[Text]) -> None:
        self._places = _places(texts)
        self._counts = np.zeros(len(self._places))
        self._vectors = self._norms = np.zeros(0, dtype=np.float32)

    def add(self, part: GroupSums) -> None:
        """Add a chunk's sums. The order of chunks decides the last digits."""
        if not self._vectors.size:
            groups = len(self._places)
            self._vectors = np.zeros((groups, *part.vectors.shape[1:]), dtype=np.float32)
            self._norms = np.zeros((groups, *part.norms.shape[1:]), dtype=np.float32)
        own = [self._places[name] for name in part.groups]
        self._counts[own] += part.counts
        self._vectors[own] += part.vectors
        self._norms[own] += part.norms

    @property
    def sums(self) -> GroupSums:
        """Of the chunks that were added."""
        return GroupSums(tuple(self._places), self._counts, self._vectors, self._norms)


def _places(texts: Sequence[Text]) -> dict[str, int]:
    return {name: place for place, name in enumerate(dict.fromkeys(text.group for text in texts))}
