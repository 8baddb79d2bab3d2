"""Values that replace a module's parameters for the rows of one adapter; the module's own are restored after use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch


class Weight(Protocol):
    """A parameter's value for an adapter."""

    def of(self, base: torch.Tensor) -> torch.Tensor:
        """Return the adapter's value; the base's is not changed."""
        ...


@dataclass(frozen=True, eq=False)
class Own:
    """A value that the adapter's file holds.

    Attributes:
        value: of the parameter's shape and dtype.
    """

    value: torch.Tensor

    def of(self, base: torch.Tensor) -> torch.Tensor:
        """See `Weight`."""
        return self.value


@dataclass(frozen=True, eq=False)
class Product:
    """W + scaling · left right, for a matrix or for every expert of a stack, in W's dtype as PEFT computes it.

    Attributes:
        left: [..., rows, rank].
        right: [..., rank, columns].
        scaling: factor of the product.
    """

    left: torch.Tensor
    right: torch.Tensor
    scaling: float

    def of(self, base: torch.Tensor) -> torch.Tensor:
        """See `Weight`."""
        add = torch.baddbmm if base.dim() == 3 else torch.addmm
        return add(base, self.left, self.right, alpha=self.scaling)


def factors(
    a: torch.Tensor, b: torch.Tensor, shape: torch.Size, transposed: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two factors of what is added to a parameter, from the file's matrices.

    PEFT stores the experts of a stack in the rank's dimension: A [experts · rank, in] with the experts outermost,
    B [out, rank · experts] with the experts innermost.

    Args:
        a: the file's A.
        b: the file's B.
        shape: the parameter's.
        transposed: whether the parameter is [experts, in, out].
    """
    if len(shape) == 2:
        return b, a
    experts = shape[0]
    right = a.reshape(experts, -1, a.shape[-1])
    left = b.reshape(len(b), -1, experts).permute(2, 0, 1)
    return (right.transpose(1, 2), left.transpose(1, 2)) if transposed else (left, right)


@contextmanager
def swapped(module: torch.nn.Module, weights: Mapping[str, Weight]) -> Iterator[None]:
    """Run a module with other values, given by name of its own parameters or buffers."""
    before = put_in(module, weights)
    try:
        yield
    finally:
        put_back(module, before)


def put_in(module: torch.nn.Module, weights: Mapping[str, Weight]) -> dict[str, torch.Tensor]:
    """Replace parameters or buffers with an adapter's values; return the previous ones."""
    before = {name: getattr(module, name) for name in weights}
    values = {name: weight.of(before[name]) for name, weight in weights.items()}
    for name, value in values.items():
        _slots(module, name)[name] = value
    return before


def put_back(module: torch.nn.Module, before: Mapping[str, torch.Tensor]) -> None:
    """Restore a module's own parameters and buffers: the same objects."""
    for name, value in before.items():
        _slots(module, name)[name] = value


def _slots(module: torch.nn.Module, name: str) -> dict[str, torch.Tensor | None]:
    """Return the module's dict that holds a name. Set there, a plain tensor can replace a parameter."""
    return module._parameters if name in module._parameters else module._buffers  # type: ignore[return-value]
