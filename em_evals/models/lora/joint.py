"""The plain LoRAs of several adapters at one module, applied to one token of each row in two products.

Row i adds s_k B_k A_k x_i of its own adapter k. With all A stacked above each other and all B beside each other that is
one product with each, where the inner values of the other adapters are set to 0. Each row computes the ranks of all
adapters; that saves a handful of calls for each adapter, and is worth it for one token a row, not for prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from em_evals.models.lora.changes import Change, LowRank
from em_evals.models.memory import available, fits

_SHARE = 0.1
"""Of the free memory: what the stacks of one module may take at most."""


class Joint:
    """Stacked matrices of some adapters.

    Args:
        parts: each adapter's LoRA; at least one, all of one dtype and device.
    """

    def __init__(self, parts: Mapping[str, LowRank]) -> None:
        self._a = torch.cat([part.a for part in parts.values()])
        self._b = torch.cat([part.b for part in parts.values()], dim=1).T
        self.columns = tuple((name, part.rank, part.scaling) for name, part in parts.items())
        """(adapter, rank, scaling) in the order of the stacks; equal ones have equal `factors`."""
        self.dtype = self._b.dtype

    def apply(
        self, inputs: torch.Tensor, output: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Add to an output in place what each row's adapter adds.

        Args:
            inputs: [rows, ..., in], one token a row.
            output: [rows, ..., out].
            factors: what `factors` returns for these rows.
        """
        scaling, others = factors
        flat = output.flatten(0, -2)
        inner = torch.nn.functional.linear(inputs.flatten(0, -2).to(self._a.dtype), self._a)
        # Not by a factor of 0: what overflows in another adapter would become NaN.
        flat.addmm_(inner.mul_(scaling).masked_fill_(others, 0.0), self._b)
        return flat.view_as(output)

    def factors(self, rows: Sequence[str | None], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scaling of each column, [columns], and whether it is another adapter's, [rows, columns] bool."""
        numbers: dict[str | None, int] = {name: place for place, (name, _, _) in enumerate(self.columns)}
        ranks = torch.tensor([rank for _, rank, _ in self.columns])
        own = torch.arange(len(ranks)).repeat_interleave(ranks)
        scaling = torch.tensor([factor for _, _, factor in self.columns]).repeat_interleave(ranks)
        owners = torch.tensor([numbers.get(name, -1) for name in rows])
        return scaling.to(device), (owners[:, None] != own).to(device)


def joint(
    module: torch.nn.Module,
    changes: Mapping[str, Sequence[Change]],
    names: Sequence[str],
    dtype: torch.dtype,
) -> Joint | None:
    """Return the stacks of some adapters at a module; None where they would not be exact, cheaper, or small enough.

    Args:
        module: the base's own.
        changes: what each adapter does at it; an adapter may be missing.
        names: the adapters.
        dtype: the output's.
    """
    parts: dict[str, LowRank] = {}
    for name in names:
        for change in changes.get(name, ()):
            if not isinstance(change, LowRank) or change.c is not None or name in parts:
                return None
            parts[name] = change
    weight = getattr(module, "weight", None)
    if not parts or type(module) is not torch.nn.Linear or weight is None:
        return None
    kinds = {(part.a.dtype, part.b.dtype, part.a.device) for part in parts.values()}
    # Of a base in lower precision the adapters stay in float32, and each row's sum is rounded once, as PEFT rounds it.
    plain = len(kinds) == 1 and all(part.a.dtype == part.b.dtype == dtype for part in parts.values())
    rank = sum(part.rank for part in parts.values())
    worth = 2 * rank * sum(weight.shape) <= weight.numel()
    nbytes = sum(part.a.nbytes + part.b.nbytes for part in parts.values())
    if not (plain and worth and nbytes <= _SHARE * available()):
        return None
    made: list[Joint] = []
    # A GPU's memory is not what `available` counts.
    return made[0] if fits(lambda: made.append(Joint(parts))) else None
