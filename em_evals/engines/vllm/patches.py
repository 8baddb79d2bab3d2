"""Patches for faults of vLLM 0.32 that end the engine, falsify a draw or slow it down; nothing here steers.

plugin.py applies them in servers that em-evals starts.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

GROUPED_LORA = "em_evals.engines.vllm.cpu_lora.GroupedLoRA"


def plain_logits() -> None:
    """Make LoRA skip the logits; adapters of the output matrix are refused (served_adapters.py).

    vLLM 0.32 adds an adapter's part to a prompt's logits with the indices of the batch's requests, not of the prompt's
    tokens: on a CPU, prompt log-probabilities with adapters end the engine.
    """
    from vllm.lora.layers.logits_processor import LogitsProcessorWithLoRA

    def _get_logits(self: Any, hidden: torch.Tensor, lm_head: Any, *args: Any, **kwargs: Any) -> Any:
        return self.base_layer._get_logits(hidden, getattr(lm_head, "base_layer", lm_head), *args, **kwargs)

    LogitsProcessorWithLoRA._get_logits = _get_logits


def rewind_on_cpu() -> None:
    """Make seeded draws work for prompts that are prefilled in chunks on a CPU.

    vLLM 0.32 draws a token at the end of every chunk and reverts those that come too early, by the generator's offset.
    A CPU's generator has no offset, and the engine ends: here its state is saved and restored.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if hasattr(CPUModelRunner, "em_evals_states"):
        return
    sample, bookkeeping = CPUModelRunner._sample, CPUModelRunner._bookkeeping_sync
    CPUModelRunner.em_evals_states = {}

    @functools.wraps(sample)
    def _sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.em_evals_states = {row: one.get_state() for row, one in self.input_batch.generators.items()}
        return sample(self, *args, **kwargs)

    @functools.wraps(bookkeeping)
    def _bookkeeping_sync(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        for row in np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0].tolist():
            if row in generators:
                generators[row].set_state(self.em_evals_states[row])
        self.input_batch.generators = {}  # nothing left for vLLM to revert
        try:
            return bookkeeping(self, *args, **kwargs)
        finally:
            self.input_batch.generators = generators

    CPUModelRunner._sample, CPUModelRunner._bookkeeping_sync = _sample, _bookkeeping_sync


def grouped_lora_on_cpu() -> None:
    """Group tokens by adapter on a CPU, so that adapters cost only their arithmetic (cpu_lora.py)."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        type(current_platform).get_punica_wrapper = classmethod(lambda cls: GROUPED_LORA)


def rotate_heads_on_cpu() -> None:
    """Rotate queries with a separate dimension for heads (DeepSeek, LFM2) correctly on a CPU.

    vLLM 0.32's CPU kernel misreads [tokens, heads, width]: draws are off by nats.
    """
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
    from vllm.platforms import current_platform

    forward = RotaryEmbedding.forward_cpu
    if not current_platform.is_cpu() or getattr(forward, "em_evals", False):
        return

    @functools.wraps(forward)
    def forward_cpu(
        self: Any, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None
    ) -> Any:
        flat = [None if one is None else one.flatten(1) for one in (query, key)]
        rotated = forward(self, positions, *flat)
        return tuple(
            None if one is None else done.view_as(one)
            for one, done in zip((query, key), rotated, strict=True)
        )

    forward_cpu.em_evals = True  # type: ignore[attr-defined]
    RotaryEmbedding.forward_cpu = forward_cpu
