"""What vLLM computes as transformers does. Anything else is refused before a server starts; nothing here imports vLLM.

models/families.py says which families were compared; here is what holds of a family's configurations only in part.
docs/vllm.md lists what was compared and what was seen.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from em_evals.content.cards import ModelCard
from em_evals.models import bases, families
from em_evals.models.vllm_blocks import Blocks

OTHERWISE = {
    "apertus": "it rounds the activation's parameters to bfloat16",
    "bloom": "by 1e-3 nats, and why was not found",
}
"""Families that were compared and differ, with the reason where it is known."""


class _Border(NamedTuple):
    tokens: int
    reason: str


def refusal(card: ModelCard) -> str | None:
    """Why vLLM is not transformers on a card's base, as a sentence without its end; None where it is.

    Raises:
        EmEvalsError: the base's configuration cannot be found or read.
    """
    config = bases.load_config(card)
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


def _window(blocks: Blocks, text: Any) -> str | None:
    """Whether each block of vLLM's gets the window that it has in transformers; an error otherwise."""
    kinds = set(getattr(text, "layer_types", None) or ())
    if blocks.windows or blocks.states or not kinds:
        return None
    if kinds != {"full_attention"}:
        return "it gives all blocks the same window"
    if getattr(text, "sliding_window", None) is not None:
        return "it gives a window to blocks that have none"
    return None


def _option(kind: str, text: Any, card: ModelCard) -> str | None:
    """What in a configuration vLLM leaves out or takes otherwise."""
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
    """The length up to which vLLM computes the same; None: any."""
    rope = getattr(text, "rope_parameters", None) or {}
    sets = [one for one in rope.values() if isinstance(one, dict)] or [rope]
    for one in sets:
        if one.get("rope_type") == "longrope":
            why = "it takes longrope's long factors for short rows too"
            return _Border(int(one["original_max_position_embeddings"]), why)
    if kind == "llama4_text" and text.attn_temperature_tuning:
        return _Border(int(text.floor_scale) - 1, "it scales queries only where it may read more than 32,768")
    return None
