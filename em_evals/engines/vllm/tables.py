"""Steering tables of one block in vLLM: its changes, and the rows that map each token to its set.

No branch depends on a request, so different sets share a batch, compiled and in CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from em_evals.models.changes import Change

CLASSES = 4
"""Classes of a token: 2 if it is in an answer, plus 1 if it is the first."""


class Tables(torch.nn.Module):
    """One block's changes, [steps, sets, …], and the rows that map each token to its set.

    Args:
        steps: maximum number of steps of one set at this block.
        sets: sets, the first of which changes nothing.
        width: of the stream.
        rows: int64 [tokens], set · 4 + class; shared by all blocks, rewritten before every forward pass.
    """

    add: torch.Tensor
    unit: torch.Tensor
    target: torch.Tensor
    limit: torch.Tensor
    on: torch.Tensor
    rows: torch.Tensor

    def __init__(self, steps: int, sets: int, width: int, rows: torch.Tensor) -> None:
        super().__init__()
        shapes = {
            "add": (sets, width),
            "unit": (sets, width),
            "target": (sets, 1),
            "limit": (sets, 1),
            "on": (sets * CLASSES, 1),
        }
        for name, shape in shapes.items():
            table = torch.zeros(steps, *shape, dtype=torch.float32, device=rows.device)
            self.register_buffer(name, table, persistent=False)
        self.limit.fill_(torch.inf)
        self.register_buffer("rows", rows, persistent=False)
        self.steps = steps
        self.used: dict[int, int] = {}
        """Number of changes of each set here."""

    def write(self, slot: int, changes: Sequence[Change]) -> None:
        """Write a set's changes at this block into a slot, over the previous ones."""
        own = slice(slot * CLASSES, (slot + 1) * CLASSES)
        for table in (self.add, self.unit, self.target):
            table[:, slot].zero_()
        self.limit[:, slot] = torch.inf
        self.on[:, own].zero_()
        for k, one in enumerate(changes):
            self.add[k, slot] = one.add.to(self.add)
            # With a closed gate the step has no direction: `along * unit` must vanish.
            self.unit[k, slot] = (one.gate * one.unit).to(self.unit)
            self.target[k, slot] = one.target
            self.limit[k, slot] = one.limit
            reach = [_reaches(one, token_class) for token_class in range(CLASSES)]
            self.on[k, own, 0] = torch.tensor(reach).to(self.on)
        self.used[slot] = len(changes)

    def change(self, stream: torch.Tensor, steps: int) -> torch.Tensor:
        """Compute what the first `steps` steps add to the stream [tokens, width], float32."""
        rows = self.rows[: stream.shape[0]]
        sets = rows // CLASSES
        total = torch.zeros_like(stream)
        for k in range(steps):
            unit = self.unit[k][sets]
            # Each step acts on the stream as the previous steps left it.
            along = self.target[k][sets] - ((stream + total) * unit).sum(-1, keepdim=True)
            along = torch.minimum(along, self.limit[k][sets])
            total = total + self.on[k][rows] * (self.add[k][sets] + along * unit)
        return total


def _reaches(one: Change, token_class: int) -> float:
    answer, first = divmod(token_class, 2)
    return float(one.when in (0, 1 + answer) and not (first and one.skip))
