"""The steps of interventions as tensors, and the rows of a forward pass that they act on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from em_evals.models.changes import Change


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a forward pass: each row's slot, and the positions of its tokens.

    Attributes:
        slots: int64 [rows], or [1] for all rows.
        positions: int64 [rows, tokens], each token's position in its row; None: rows begin at column 0.
        answers: int64 [rows], where each row's answer begins; None: nothing is answer.
    """

    slots: torch.Tensor
    positions: torch.Tensor | None = None
    answers: torch.Tensor | None = None

    def onto(self, device: torch.device) -> Rows:
        """Return the rows with their tensors on a device."""
        if self.slots.device == device:
            return self
        moved = [None if one is None else one.to(device) for one in (self.positions, self.answers)]
        return Rows(self.slots.to(device), *moved)


@dataclass(eq=False)
class Table:
    """The changes of every slot at one place, [steps, slots, …]: step k of a slot is its k-th change here."""

    slots: list[list[Change]] = field(default_factory=list)

    def build(self, width: int, device: torch.device) -> None:
        """Stack the slots' changes; missing steps are changes without effect."""
        nothing = Change(torch.zeros(width), torch.zeros(width), 0.0, 0.0, 0, 0)
        self.steps = max(map(len, self.slots), default=0)
        grid = [[s[k] if k < len(s) else nothing for s in self.slots] for k in range(self.steps)]

        def stacked(name: str) -> torch.Tensor:
            values = [[torch.as_tensor(getattr(c, name)) for c in row] for row in grid]
            return torch.stack([torch.stack(row) for row in values]).to(device)

        if self.steps:
            self.add, self.unit, self.gate, self.target, self.when, self.skip = map(
                stacked, ("add", "unit", "gate", "target", "when", "skip")
            )
            self.limit = stacked("limit")

    def edit(self, hidden: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Return the changed stream, [rows, tokens, width], in its own dtype."""
        self._onto(hidden.device)
        rows = rows.onto(hidden.device)
        stream, slots = hidden.float(), rows.slots
        places = rows.positions
        if places is None:
            places = torch.arange(stream.shape[1], device=stream.device)[None]
        # h + (gate · min(target - h·u, limit) u + add) · mask, step by step: each one sees what the last one made of h.
        for k in range(self.steps):
            unit = self.unit[k][slots]
            along = self.target[k][slots][:, None] - (stream @ unit[..., None])[..., 0]
            along = torch.minimum(along, self.limit[k][slots][:, None])
            push = (self.gate[k][slots][:, None] * along)[..., None] * unit[:, None] + self.add[k][slots][
                :, None
            ]
            stream = stream + push * self._reach(k, places, rows)[..., None]
        return stream.to(hidden.dtype)

    def _onto(self, device: torch.device) -> None:
        """Move the tables to where the stream is: a base may be spread over several devices."""
        if self.steps and self.add.device != device:
            for name in ("add", "unit", "gate", "target", "when", "skip", "limit"):
                setattr(self, name, getattr(self, name).to(device))

    def alone(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the first slot to one row, [1, tokens, width] or [tokens, width]."""
        rows = Rows(torch.zeros(1, dtype=torch.int64, device=self.unit.device))
        return self.edit(hidden.reshape(1, -1, hidden.shape[-1]), rows).reshape(hidden.shape)

    def _reach(self, k: int, places: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Return a float mask [rows, tokens], 1 where step k acts."""
        when, skip = self.when[k][rows.slots][:, None], self.skip[k][rows.slots][:, None]
        answer = torch.zeros_like(places, dtype=torch.bool)
        if rows.answers is not None:
            answer = places >= rows.answers[:, None]
        allowed = (when == 0) | ((when == 1) & ~answer) | ((when == 2) & answer)
        return (allowed & (places >= skip)).float()
