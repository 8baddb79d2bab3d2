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

NUMBERS = ("loss", "grad_norm", "learning_rate", "kl", "features")
"""What a row may say of its step."""


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return a journal's rows; a last line that a kill truncated is left out.

    Raises:
        EmEvalsError: another line is no row of a journal.
    """
    rows: list[dict[str, Any]] = []
    lines = files.read_text(path).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parsing.json_value(line, path, number)
        except EmEvalsError:
            if number == len(lines):
                break
            raise
        fault = _fault(row)
        if fault is None and rows and row["step"] <= rows[-1]["step"]:
            fault = f"step {row['step']} stands behind step {rows[-1]['step']}"
        if fault is not None:
            raise EmEvalsError(f"this line is no row of a training's journal: {fault}.", path, number)
        rows.append(row)
    return rows


def _fault(row: Any) -> str | None:
    """Return what a journal's row lacks."""
    # A Boolean is a whole number in Python, and is no step.
    if not isinstance(row, dict) or type(row.get("step")) is not int or row["step"] < 0:
        return "`step` has to be a whole number from 0"
    for name in NUMBERS:
        if name in row and type(row[name]) not in (int, float):
            return f"`{name}` has to be a number"
    vectors = row.get("b", {})
    if not isinstance(vectors, dict) or not all(isinstance(vector, str) for vector in vectors.values()):
        return "`b` has to hold a packed vector for each module"
    return None


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
