"""How the B vector of a rank-1 adapter turns during training (Turner et al. 2025, arXiv 2506.11613, section 4).

A rank-1 LoRA writes along one vector, B. While it only grows, its path is straight; where the finetune changes what
it learns, the path turns a corner.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_evals.content.directions import cosines
from em_evals.results.records import Rotation

Vectors = NDArray[np.float64]


def rotations(journal: Sequence[Mapping[str, Any]], reach: int = 5) -> list[Rotation]:
    """Every rank-1 adapter's path from a training journal; none where nothing of rank 1 was trained.

    Args:
        journal: rows of training.jsonl, a step each.
        reach: k, the steps to look back and ahead.
    """
    rows = [row for row in journal if row.get("b")]
    steps = tuple(int(row["step"]) for row in rows)
    modules = sorted({module for row in rows for module in row["b"]})
    return [
        _rotation(module, steps, np.stack([unpack(row["b"][module]) for row in rows]), reach)
        for module in modules
    ]


def unpack(packed: str) -> Vectors:
    """A vector out of the journal: `f4:` and base64 of little-endian float32; older journals have bare float16."""
    kind, _, vector = packed.rpartition(":")
    return np.frombuffer(base64.b64decode(vector), dtype="<f4" if kind == "f4" else "<f2").astype(np.float64)


def _rotation(module: str, steps: tuple[int, ...], path: Vectors, reach: int) -> Rotation:
    local = np.full(len(path), np.nan)
    if len(path) > 2 * reach:
        here = path[reach:-reach]
        local[reach:-reach] = cosines(path[: -2 * reach] - here, path[2 * reach :] - here)
    return Rotation(
        module=module,
        steps=steps,
        to_final=tuple(cosines(path, path[-1]).tolist()),
        local=tuple(local.tolist()),
    )
