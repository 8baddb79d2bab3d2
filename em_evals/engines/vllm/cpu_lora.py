"""LoRA on a CPU in vLLM, computed adapter by adapter.

vLLM 0.32 copies an adapter's two matrices once for every token of the batch and multiplies token by token. Here the
tokens are sorted by adapter, and each adapter's tokens are multiplied with its matrices together: the same numbers, and
nothing copied but the tokens. CUDA has its own kernels, which this does not change.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Stacked = tuple[torch.Tensor, ...]


class GroupedLoRA(PunicaWrapperCPU):
    """vLLM's LoRA arithmetic of linear layers, grouped by adapter. See `PunicaWrapperCPU`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._spans: list[tuple[int, int, int]] = []
        """For the next forward pass: each slot's number, first row and one past its last row, in order of the slots."""
        self._order: torch.Tensor | None = None
        """Rows in order of their slots; None: in their own order."""
        self._back: torch.Tensor | None = None

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Record the slot of each token of the next forward pass; the base's tokens have slot -1."""
        super().update_metadata(*args, **kwargs)
        ordered, order = self.token_lora_indices.sort(stable=True)
        slots, counts = ordered.unique_consecutive(return_counts=True)
        ends = counts.cumsum(0)
        spans = zip(slots.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True)
        self._spans = [span for span in spans if span[0] >= 0]
        several = len(slots) > 1
        self._order, self._back = (order, order.argsort()) if several else (None, None)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Stacked,
        lora_b_stacked: Stacked,
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """Add scale · B A x to y, with each row's own A and B.

        Args:
            y: [tokens, sum of the slices], the output of the layer without adapters.
            x: [tokens, in], its input.
            lora_a_stacked: for each slice [slots, 1, rank, in].
            lora_b_stacked: for each slice [slots, 1, slice, rank].
            scale: factor, 1 where B contains it already.
            output_slices: widths of the slices; B's shapes have them too.
            kwargs: vLLM's own, not used here.
        """
        if not self._spans:
            return
        rows, out = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        if self._order is not None:
            rows = rows.index_select(0, self._order)  # a quarter of the time of rows[…]
        change = out.new_zeros(len(rows), sum(output_slices))
        for slot, first, last in self._spans:
            parts = change[first:last].split(output_slices, dim=-1)
            for part, a, b in zip(parts, lora_a_stacked, lora_b_stacked, strict=True):
                torch.mm(scale * (rows[first:last] @ a[slot, 0].T), b[slot, 0].T, out=part)
        out += change if self._back is None else change.index_select(0, self._back)
