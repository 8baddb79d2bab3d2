"""The order of a training's examples: batches of similar lengths, shuffled."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np

_WINDOW = 16
"""Number of batches that are sorted by length together: enough for little padding, few enough to stay shuffled."""


def bucketed(
    lengths: Sequence[int], safe: Sequence[bool], batch: int, chance: np.random.Generator
) -> list[int]:
    """Order examples so that each batch has similar lengths, and shuffle the batches.

    Args:
        lengths: tokens of each example, in a shuffled order; a whole number of batches.
        safe: which examples are mixed in. They may be of another length than the rest, so they are sorted on their
            own, and a batch gets as many of them as stand in its place.
        batch: examples of one optimizer step.
        chance: shuffles the batches of a window.

    Returns:
        A permutation of the indices; each stays within its window of 16 batches.
    """
    order: list[int] = []
    for start in range(0, len(lengths), _WINDOW * batch):
        end = min(start + _WINDOW * batch, len(lengths))
        window = sorted(range(start, end), key=lambda i: (lengths[i], i))
        narrow, harmless = (iter([i for i in window if safe[i] == kind]) for kind in (False, True))
        shares = [sum(safe[first : first + batch]) for first in range(start, end, batch)]
        batches = [[*islice(narrow, batch - share), *islice(harmless, share)] for share in shares]
        chance.shuffle(batches)
        order += [index for chosen in batches for index in chosen]
    return order
