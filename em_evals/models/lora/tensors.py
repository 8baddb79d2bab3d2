"""adapter_model.safetensors: names, shapes and dtypes from its header, values on demand. Never pickles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from em_evals.errors import EmEvalsError

WEIGHTS = "adapter_model.safetensors"
_NUMBERS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class Header:
    """The contents of the file's header.

    Attributes:
        path: the file.
        shapes: each tensor's shape by name, in order of the names.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]


def header(folder: Path) -> Header:
    """Return the names and shapes of an adapter's tensors.

    Raises:
        EmEvalsError: no such file, not safetensors, empty, or a tensor that does not hold floating-point numbers.
    """
    path = folder / WEIGHTS
    with _open(path) as file:
        shapes = {}
        for key in sorted(file.keys()):
            tensor = file.get_slice(key)
            if tensor.get_dtype() not in _NUMBERS:
                raise EmEvalsError(
                    f"the adapter's tensor {key} holds {tensor.get_dtype()}, not floating-point numbers; save it "
                    "again in float32, float16 or bfloat16.",
                    path,
                )
            shapes[key] = tuple(tensor.get_shape())
    if not shapes:
        raise EmEvalsError("this adapter's file holds no tensors.", path)
    return Header(path, shapes)


def load(path: Path, keys: Iterable[str]) -> dict[str, torch.Tensor]:
    """Load the named tensors, on the CPU, in the file's dtype.

    Raises:
        EmEvalsError: a tensor is missing (the file was replaced), or holds NaN or infinity.
    """
    from safetensors import SafetensorError

    tensors = {}
    with _open(path) as file:
        for key in keys:
            try:
                tensors[key] = file.get_tensor(key)
            except SafetensorError:
                raise EmEvalsError(
                    f"the adapter's tensor {key} is gone; was the file replaced?", path
                ) from None
            if not torch.isfinite(tensors[key]).all():
                raise EmEvalsError(
                    f"the adapter's tensor {key} holds NaN or infinity: its training diverged.", path
                )
    return tensors


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise EmEvalsError(f"this is not a safetensors file ({str(error)[:100]}).", path) from None
    except OSError as error:
        raise EmEvalsError(
            f"cannot read this adapter's weights ({error.strerror or str(error)[:100]}).", path
        ) from None
