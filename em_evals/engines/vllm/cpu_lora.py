"""LoRA on a CPU in vLLM, adapter by adapter.

vLLM 0.32 copies an adapter's two matrices once for every token of the batch and multiplies token by token. Here the
tokens are put in order of their adapters, and each adapter's go through its matrices together: the same numbers, and
nothing copied but the tokens. CUDA has its own kernels, which this leaves alone.
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
        """Of the coming forward pass: slots, each with the first and the last of its rows, in order of the slots."""
        self._order: torch.Tensor | None = None
        """Rows in order of their slots; None: as they come."""
        self._back: torch.Tensor | None = None

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Learn which token of the coming forward pass belongs to which slot; the base's are of slot -1."""
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
            y: [tokens, the slices' sum], what the layer without adapters computed.
            x: [tokens, in], its input.
            lora_a_stacked: for each slice [slots, 1, rank, in].
            lora_b_stacked: for each slice [slots, 1, slice, rank].
            scale: factor, 1 where it is in B already.
            output_slices: widths of the slices, which B's shapes say too.
            kwargs: vLLM's own, of no use here.
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
