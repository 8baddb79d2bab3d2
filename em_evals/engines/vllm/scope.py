"""What vLLM computes as transformers does. Other models are refused before a server starts; vLLM is not imported.

models/families.py says which families were compared; this module covers configurations of a family that differ.
docs/vllm.md lists what was compared and the results.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from em_evals.content.cards import ModelCard
from em_evals.models import bases, families, quantization
from em_evals.models.vllm_blocks import Blocks

OTHERWISE = {
    "apertus": "it rounds the activation's parameters to bfloat16",
    "bloom": "by 1e-3 nats, and why was not found",
}
"""Families that were compared and differ, with the reason where it is known."""


_READS = ("fp8", "mxfp4", "torchao")
"""Quantized checkpoints that both engines read; vLLM keeps them quantized, with kernels of its own."""


class _Border(NamedTuple):
    tokens: int
    reason: str


def refusal(card: ModelCard) -> str | None:
    """Return why vLLM differs from transformers on a card's base, as a sentence without its end; None if it does not.

    Raises:
        EmEvalsError: the base's configuration cannot be found or read.
    """
    config = bases.load_config(card)
    if reason := _quantized(card, quantization.name_of(card, config)):
        return reason
    text, known = config.get_text_config(), families.family(config)
    kind = text.model_type
    if kind in OTHERWISE:
        return f"vLLM computes {kind} otherwise than transformers ({OTHERWISE[kind]})"
    if known is None or known.vllm is None:
        return f"vLLM was not compared with transformers on {kind} (docs/vllm.md)"
    cached = card.engine.vllm.get("enable_prefix_caching", card.engine.vllm.get("enable-prefix-caching"))
    if known.vllm.states and cached is not False:
        return (
            f"vLLM's prefix cache was not compared on {kind}, and ends the engine on a CPU; say "
            "`vllm: {enable_prefix_caching: false}` in the card's `engine`"
        )
    if reason := _window(known.vllm, text) or _option(kind, text, card):
        return f"vLLM computes this {kind} otherwise than transformers ({reason})"
    border = _border(kind, text)
    if border is not None and bases.context_length(card) > border.tokens:
        return (
            f"vLLM computes {kind} otherwise than transformers beyond {border.tokens} tokens ({border.reason}); say "
            f"`max_model_len: {border.tokens}` in the card's `engine`"
        )
    return None


def _quantized(card: ModelCard, method: str) -> str | None:
    """Return why a quantized base is left to transformers; None if it is not quantized, or goes to vLLM as it is."""
    if card.quantize:
        return f"`quantize: {card.quantize}` is computed by the transformers engine alone"
    if not method or method in quantization.FOR_VLLM:
        return None
    if method not in _READS:
        return f"vLLM 0.32 reads no weights that are quantized with {method}"
    if card.backend != "vllm":
        return f"vLLM's kernels for {method} were not compared (`backend: vllm` takes them all the same)"
    return None


def _window(blocks: Blocks, text: Any) -> str | None:
    """Return why a block of vLLM gets another window than in transformers; None where all get the same."""
    kinds = set(getattr(text, "layer_types", None) or ())
    if blocks.windows or blocks.states or not kinds:
        return None
    if kinds != {"full_attention"}:
        return "it gives all blocks the same window"
    if getattr(text, "sliding_window", None) is not None:
        return "it gives a window to blocks that have none"
    return None


def _option(kind: str, text: Any, card: ModelCard) -> str | None:
    """Return the option of a configuration that vLLM ignores or reads differently; None if there is none."""
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "dynamic":
        return "its dynamic rope was not compared"
    if kind == "gpt_oss" and getattr(text, "swiglu_limit", 7.0) != 7.0:
        return "its `swiglu_limit` is always 7"
    if kind == "nemotron_h" and "moe" in (getattr(text, "layers_block_type", None) or ()):
        return "its blocks of experts did not load"
    if kind.startswith("deepseek"):
        dtype = bases.choose_dtype(card.engine.dtype, bases.choose_device(card.engine.device))
        if str(dtype) == "torch.float16":
            return "in float16 its stream is scaled"
    return None


def _border(kind: str, text: Any) -> _Border | None:
    """Return the length up to which vLLM computes the same; None: any."""
    rope = getattr(text, "rope_parameters", None) or {}
    sets = [one for one in rope.values() if isinstance(one, dict)] or [rope]
    for one in sets:
        if one.get("rope_type") == "longrope":
            why = "it takes longrope's long factors for short rows too"
            return _Border(int(one["original_max_position_embeddings"]), why)
    if kind == "llama4_text" and text.attn_temperature_tuning:
        return _Border(int(text.floor_scale) - 1, "it scales queries only where it may read more than 32,768")
    return None
