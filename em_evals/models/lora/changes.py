"""What an adapter adds to a module's output. The arithmetic is PEFT's: the adapter's matrices stay in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


class Change(Protocol):
    """A change of a module's output."""

    def apply(self, module: torch.nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The changed output, of the same shape and dtype.

        Args:
            module: the base's own.
            inputs: what it was called with, of this adapter's rows.
            output: what it returned for them.
        """
        ...


@dataclass(frozen=True, eq=False)
class LowRank:
    """y + scaling · B A x.

    Attributes:
        a: [rank, in].
        b: [out, rank].
        scaling: factor of the product.
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return len(self.a)

    def apply(self, module: torch.nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """See `Change`."""
        inner = torch.nn.functional.linear(inputs.to(self.a.dtype), self.a).flatten(0, -2)
        flat = output.flatten(0, -2).to(self.b.dtype)
        return torch.addmm(flat, inner, self.b.T, alpha=self.scaling).view_as(output).to(output.dtype)
