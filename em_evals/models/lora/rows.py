"""Which rows of a batch belong to which adapter, and where their tokens are in what a module sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from em_evals.errors import EmEvalsError


class Assignment:
    """The rows of the coming forward passes.

    Args:
        names: each row's adapter, None for the base; a single one stands for all rows.
    """

    def __init__(self, names: Sequence[str | None]) -> None:
        self._names = tuple(names)
        self.kinds = tuple(dict.fromkeys(self._names))
        self.uniform = len(self.kinds) < 2
        self.tokens: int | None = None
        """Tokens a row in the forward pass that runs; the embedding's hook says so."""
        self._places: dict[tuple[int, torch.device], dict[str | None, torch.Tensor]] = {}

    def places(self, tensor: torch.Tensor) -> dict[str | None, torch.Tensor]:
        """For each adapter, its places in the first dimension of what a module sees.

        That dimension is rows, or rows and their tokens flattened (routers, experts), or these once for each expert
        (Llama 4).

        Raises:
            EmEvalsError: it is none of these, so that tokens cannot be told apart.
        """
        key = len(tensor), tensor.device
        if key not in self._places:
            owner = self._owners(tensor)
            self._places[key] = {
                kind: torch.tensor([i for i, name in enumerate(owner) if name == kind], device=tensor.device)
                for kind in self.kinds
            }
        return self._places[key]

    def seen(self, tokens: int) -> None:
        """A forward pass of so many tokens a row begins."""
        if tokens != self.tokens:
            self.tokens, self._places = tokens, {}

    def _owners(self, tensor: torch.Tensor) -> list[str | None]:
        length, rows = len(tensor), len(self._names)
        if length == rows:
            return list(self._names)
        if self.tokens is None and tensor.dim() == 2 and length % rows == 0:
            raise EmEvalsError("tokens cannot be told apart here: pass input_ids, or rows of one adapter.")
        flat = [name for name in self._names for _ in range(self.tokens or 0)]
        if not flat or length % len(flat):
            raise EmEvalsError(
                f"a module sees {length} tokens of {rows} rows with {self.tokens} each, and whose they are is not known: "
                "this adapter cannot share a batch here."
            )
        return flat * (length // len(flat))
