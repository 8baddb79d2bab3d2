"""Journals of trainings (training.jsonl): one line per optimizer step.

Step 0, where there is one, is the untrained model. Vectors are `f4:` and base64 of little-endian float32.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_evals import files, parsing
from em_evals.errors import EmEvalsError


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return a journal's rows; a last line that a kill truncated is left out."""
    rows = []
    for line in files.read_text(path).splitlines():
        try:
            rows.append(parsing.json_value(line))
        except EmEvalsError:
            break
    return rows


def pack(vector: NDArray[np.floating]) -> str:
    """Encode a vector.

    Not float16: with a learning rate that decays to 0 the last steps of B are smaller than its spacing at B's
    magnitude.

    Example:
        >>> unpack(pack(np.array([1.0, 2.5])))
        array([1. , 2.5])
    """
    return "f4:" + base64.b64encode(np.asarray(vector).astype("<f4").tobytes()).decode("ascii")


def unpack(packed: str) -> NDArray[np.float64]:
    """Decode a vector; older journals have bare float16."""
    kind, _, vector = packed.rpartition(":")
    return np.frombuffer(base64.b64decode(vector), dtype="<f4" if kind == "f4" else "<f2").astype(np.float64)
