"""Which rows of a batch use which adapter, and where their tokens are in a module's input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from em_evals.errors import EmEvalsError
from em_evals.models.lora.joint import Joint


@dataclass(frozen=True, eq=False)
class Places:
    """Some indices of a tensor's first dimension.

    Attributes:
        index: int64, ascending.
        span: first and one past the last, where they are contiguous.
    """

    index: torch.Tensor
    span: tuple[int, int] | None

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the part of a tensor at these places: a view if they are contiguous, else a copy."""
        if self.span is not None:
            return tensor[self.span[0] : self.span[1]]
        return tensor.index_select(0, self.index)


class Assignment:
    """The rows of the next forward passes.

    Args:
        names: each row's adapter, None for the base; a single one applies to all rows.
    """

    def __init__(self, names: Sequence[str | None]) -> None:
        self._names = tuple(names)
        self.kinds = tuple(dict.fromkeys(self._names))
        self.uniform = len(self.kinds) < 2
        self.adapters = frozenset(name for name in self.kinds if name is not None)
        self._tokens: int | None = None
        self._places: dict[tuple[int, bool, torch.device], Mapping[str | None, Places]] = {}
        self._factors: dict[tuple[Any, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}

    def begin(self, tokens: int) -> None:
        """Begin a forward pass with this many tokens per row."""
        if tokens != self._tokens:
            self._tokens, self._places = tokens, {}

    def places(self, tensor: torch.Tensor, stacked: bool = False) -> Mapping[str | None, Places]:
        """Return each adapter's places in the first dimension of a module's input.

        That dimension is rows, or rows with their tokens (and heads) flattened, rows outermost.

        Args:
            tensor: a module's input.
            stacked: all tokens may be repeated for each expert, experts outermost (Llama 4).

        Raises:
            EmEvalsError: it is none of these, so tokens cannot be assigned to rows.
        """
        key = len(tensor), stacked, tensor.device
        if key not in self._places:
            owners = self._owners(len(tensor), stacked)
            self._places[key] = {kind: _where(owners, kind, tensor.device) for kind in self.kinds}
        return self._places[key]

    def single(self, tensor: torch.Tensor) -> bool:
        """Check whether a module's input has one token of each row."""
        return self._tokens == 1 and len(tensor) == len(self._names) == tensor[..., 0].numel()

    def factors(self, stacked: Joint, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `Joint.factors` of these rows; modules with the same ranks share them."""
        key = stacked.columns, device
        if key not in self._factors:
            self._factors[key] = stacked.factors(self._names, device)
        return self._factors[key]

    def _owners(self, length: int, stacked: bool) -> list[str | None]:
        """Return each place's adapter."""
        rows = len(self._names)
        if length == rows:
            return list(self._names)
        whole = rows * (self._tokens or 0)
        if not whole or length % whole:
            raise EmEvalsError(
                f"a module sees {length} tokens of {rows} rows with {self._tokens or 'unknown'} tokens each, and it is "
                "not known whose they are: these adapters cannot share a batch; draw from one at a time."
            )
        if stacked:
            return [name for name in self._names for _ in range(self._tokens or 0)] * (length // whole)
        return [name for name in self._names for _ in range(length // rows)]


def _where(owners: Sequence[str | None], kind: str | None, device: torch.device) -> Places:
    found = [i for i, owner in enumerate(owners) if owner == kind]
    neighbours = found[-1] - found[0] + 1 == len(found)
    return Places(torch.tensor(found, device=device), (found[0], found[-1] + 1) if neighbours else None)
