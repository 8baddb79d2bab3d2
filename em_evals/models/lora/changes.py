"""What an adapter adds to a module's output. The arithmetic is PEFT's: the adapter's matrices stay in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional


class Change(Protocol):
    """A change of a module's output."""

    def apply(self, module: torch.nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Return the changed output, of the same shape and dtype; may change `output` in place without gradients.

        Args:
            module: the base's own.
            inputs: its inputs, of this adapter's rows.
            output: its output for them.
        """
        ...


@dataclass(frozen=True, eq=False)
class LowRank:
    """y + scaling · (B A x + c), with c = 0 except for `lora_bias`.

    Attributes:
        a: [rank, in].
        b: [out, rank].
        scaling: factor of the product.
        c: [out], or None.
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    c: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        """Rows of A."""
        return len(self.a)

    @property
    def product(self) -> torch.Tensor:
        """Scaling · B A, [out, in]."""
        return self.scaling * (self.b @ self.a)

    def inner(self, inputs: torch.Tensor) -> torch.Tensor:
        """Compute A x, [..., rank]."""
        return functional.linear(inputs.to(self.a.dtype), self.a)

    def difference(self, inputs: torch.Tensor) -> torch.Tensor:
        """Compute what is added to the output, in the adapter's dtype."""
        return functional.linear(self.inner(inputs), self.b, self.c) * self.scaling

    def apply(self, module: torch.nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """See `Change`."""
        if self.c is not None or output.dtype != self.b.dtype:
            return (output + self.difference(inputs)).to(output.dtype)
        # One pass over the output instead of three.
        flat, inner = output.flatten(0, -2), self.inner(inputs).flatten(0, -2)
        if torch.is_grad_enabled():
            return torch.addmm(flat, inner, self.b.T, alpha=self.scaling).view_as(output)
        flat.addmm_(inner, self.b.T, alpha=self.scaling)
        return flat.view_as(output)


@dataclass(frozen=True, eq=False)
class Dora:
    """m/‖W + scaling·BA‖ · (W x + scaling·B A x) + bias (arXiv 2402.09353), with the norm of each output's row.

    Attributes:
        low_rank: B and A.
        factor: m/‖…‖, [out].
    """

    low_rank: LowRank
    factor: torch.Tensor

    def apply(self, module: torch.nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """See `Change`."""
        bias = getattr(module, "bias", None)
        product = output if bias is None else output - bias
        added = (self.factor - 1) * product + self.factor * self.low_rank.difference(inputs)
        return (output + added).to(output.dtype)


@dataclass(frozen=True, eq=False)
class LowRankEmbedding:
    """f · (E[i] + scaling · (B A)ᵀ[i] · s), with s an embedding's own scale (Gemma) and f = 1 except for DoRA.

    Attributes:
        a: [rank, vocabulary].
        b: [width, rank].
        scaling: factor of the product.
        factor: m/‖…‖ of DoRA, [width], or None.
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    factor: torch.Tensor | None = None

    @property
    def product(self) -> torch.Tensor:
        """Scaling · (B A)ᵀ, [vocabulary, width]."""
        return self.scaling * (self.b @ self.a).T

    def apply(self, module: torch.nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """See `Change`."""
        added = functional.linear(functional.embedding(inputs, self.a.T), self.b) * self.scaling
        if (scale := embedding_scale(module)) is not None:
            added = added * scale.to(added.dtype)
        if self.factor is None:
            return (output + added).to(output.dtype)
        return (self.factor * (output + added)).to(output.dtype)


@dataclass(frozen=True, eq=False)
class Offset:
    """y + difference, for a changed bias.

    Attributes:
        difference: [out].
    """

    difference: torch.Tensor

    def apply(self, module: torch.nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """See `Change`."""
        return (output + self.difference).to(output.dtype)


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Separate rows for some tokens in an embedding or in the output matrix.

    Attributes:
        rows: [tokens, width], in the base's dtype.
        indices: int64 [tokens].
        place: int64 [vocabulary], each token's place in `rows`, or -1.
    """

    rows: torch.Tensor
    indices: torch.Tensor
    place: torch.Tensor

    def apply(self, module: torch.nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """See `Change`."""
        if isinstance(module, torch.nn.Embedding):
            place = self.place[inputs]
            rows = self.rows[place.clamp(min=0)]
            if (scale := embedding_scale(module)) is not None:
                rows = rows * scale.to(rows.dtype)
            return torch.where((place >= 0)[..., None], rows, output)
        return output.index_copy(-1, self.indices, functional.linear(inputs, self.rows).to(output.dtype))


def embedding_scale(module: Any) -> torch.Tensor | None:
    """Return the factor of an embedding's rows (Gemma); None for 1."""
    scale = getattr(module, "embed_scale", None)
    if isinstance(scale, int | float):
        return torch.tensor(scale, dtype=module.weight.dtype, device=module.weight.device)
    return scale if isinstance(scale, torch.Tensor) and scale.numel() == 1 else None
