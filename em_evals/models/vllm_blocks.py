"""vLLM's decoder blocks, by model type: classes, and what they give. The table's `vllm` (models/families.py).

A model type is here after its draws and steering were compared with transformers and hooks on tiny models (tests/
vllm_lab.py; docs/vllm.md tells the rest). A class is written as its module's last name and
its own: vLLM's, or transformers' own (`modeling_…`), which vLLM runs where it has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Blocks:
    """The blocks of a model type.

    Attributes:
        classes: every class among them.
        stream: what they give: (hidden, residual) whose `sum` is the stream, or the stream `first`.
        windows: models in which only some blocks have a window were compared; else vLLM may give all of them the same.
        states: some blocks are recurrent.
        lora: vLLM's class takes adapters at all.
    """

    classes: tuple[str, ...]
    stream: Literal["sum", "first"]
    windows: bool = False
    states: bool = False
    lora: bool = True


def _sum(*classes: str, **more: bool) -> Blocks:
    return Blocks(classes, "sum", **more)


def _first(*classes: str, **more: bool) -> Blocks:
    return Blocks(classes, "first", **more)


_DEEPSEEK = _sum("deepseek_v2.DeepseekV2DecoderLayer")
_OWN = {"olmo2": "Olmo2", "phi": "Phi"}
"""Transformers' own blocks, by the beginning of their class's name."""

BLOCKS: dict[str, Blocks] = {
    **{kind: _first(f"modeling_{kind}.{name}DecoderLayer", windows=True) for kind, name in _OWN.items()},
    "afmoe": _sum("afmoe.AfmoeDecoderLayer", windows=True),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "exaone4": _first("exaone4.Exaone4DecoderLayer", windows=True),
    "falcon_h1": _first("falcon_h1.FalconH1ParallelHybrid", states=True),
    "gemma": _sum("gemma.GemmaDecoderLayer"),
    "gemma2": _sum("gemma2.Gemma2DecoderLayer", windows=True),
    "gemma3_text": _sum("gemma3.Gemma3DecoderLayer", windows=True),
    "gemma4_text": _first("gemma4.Gemma4DecoderLayer", windows=True),
    "glm4_moe": _sum("glm4_moe.Glm4MoeDecoderLayer"),
    "glm4_moe_lite": _sum("glm4_moe_lite.Glm4MoeLiteDecoderLayer"),
    "gpt2": _first("gpt2.GPT2Block", lora=False),
    "gpt_oss": _sum("gpt_oss.TransformerBlock", windows=True),
    "granite": _first("granite.GraniteDecoderLayer"),
    "granitemoehybrid": _first(
        "granitemoehybrid.GraniteMoeHybridAttentionDecoderLayer",
        "granitemoehybrid.GraniteMoeHybridMambaDecoderLayer",
        states=True,
    ),
    "lfm2": _sum("lfm2.Lfm2AttentionDecoderLayer", "lfm2.Lfm2ShortConvDecoderLayer", states=True),
    "lfm2_moe": _sum(
        "lfm2_moe.Lfm2MoeAttentionDecoderLayer", "lfm2_moe.Lfm2MoeShortConvDecoderLayer", states=True
    ),
    "llama": _sum("llama.LlamaDecoderLayer"),
    "llama4_text": _sum("llama4.Llama4DecoderLayer", windows=True),
    "minicpm3": _first("minicpm3.MiniCPM3DecoderLayer"),
    "mistral": _sum("mistral.MistralDecoderLayer"),
    "nemotron_h": _sum(
        "nemotron_h.NemotronHAttentionDecoderLayer",
        "nemotron_h.NemotronHMLPDecoderLayer",
        "nemotron_h.NemotronHMambaDecoderLayer",
        states=True,
    ),
    "phi3": _sum("llama.LlamaDecoderLayer"),
    "qwen2": _sum("qwen2.Qwen2DecoderLayer"),
    "qwen3": _sum("qwen3.Qwen3DecoderLayer"),
    "qwen3_moe": _sum("qwen3_moe.Qwen3MoeDecoderLayer"),
    "stablelm": _first("stablelm.StablelmDecoderLayer", lora=False),
}
