"""Which rows of a batch belong to which adapter, and where their tokens are in what a module sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from em_evals.errors import EmEvalsError


@dataclass(frozen=True, eq=False)
class Places:
    """Some places in a tensor's first dimension.

    Attributes:
        index: int64, ascending.
        span: first and one behind the last, where they are neighbours.
    """

    index: torch.Tensor
    span: tuple[int, int] | None

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The part of a tensor at these places: a view of neighbours, a copy of others."""
        if self.span is not None:
            return tensor[self.span[0] : self.span[1]]
        return tensor.index_select(0, self.index)


class Assignment:
    """The rows of the coming forward passes.

    Args:
        names: each row's adapter, None for the base; a single one stands for all rows.
    """

    def __init__(self, names: Sequence[str | None]) -> None:
        self._names = tuple(names)
        self.kinds = tuple(dict.fromkeys(self._names))
        self.uniform = len(self.kinds) < 2
        self._tokens: int | None = None
        self._places: dict[tuple[int, bool, torch.device], Mapping[str | None, Places]] = {}

    def begin(self, tokens: int) -> None:
        """A forward pass of so many tokens a row begins."""
        if tokens != self._tokens:
            self._tokens, self._places = tokens, {}

    def places(self, tensor: torch.Tensor, stacked: bool = False) -> Mapping[str | None, Places]:
        """For each adapter, its places in the first dimension of what a module sees.

        That dimension is rows, or rows with their tokens (and heads) flattened, rows outside.

        Args:
            tensor: a module's input.
            stacked: all tokens may be there once for each expert, experts outside (Llama 4).

        Raises:
            EmEvalsError: it is none of these, so that tokens cannot be told apart.
        """
        key = len(tensor), stacked, tensor.device
        if key not in self._places:
            owners = self._owners(len(tensor), stacked)
            self._places[key] = {kind: _where(owners, kind, tensor.device) for kind in self.kinds}
        return self._places[key]

    def _owners(self, length: int, stacked: bool) -> list[str | None]:
        """Whose each place is."""
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
