"""Tensors that an interrupted run left for the next one: read where they are whole, else computed again."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from numpy.typing import NDArray


def load(path: Path, names: Collection[str]) -> dict[str, NDArray[Any]] | None:
    """Return the tensors of a safetensors file; None where there is no file, or it is damaged or holds others."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError):  # KeyError: a dtype that NumPy does not have
        return None
    return found if found.keys() == set(names) else None
