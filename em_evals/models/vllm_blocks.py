"""vLLM's decoder blocks, by model type: classes, and what they give. The table's `vllm` (models/families.py).

A model type is here after its draws, adapters and steering were compared with transformers, PEFT and hooks on tiny
models (tests/test_vllm_families.py; docs/vllm.md tells the rest). A class is written as its module's last name and
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
    """

    classes: tuple[str, ...]
    stream: Literal["sum", "first"]
    windows: bool = False
    states: bool = False


def _sum(*classes: str, **more: bool) -> Blocks:
    return Blocks(classes, "sum", **more)


def _first(*classes: str, **more: bool) -> Blocks:
    return Blocks(classes, "first", **more)


_DEEPSEEK = _sum("deepseek_v2.DeepseekV2DecoderLayer")
_COHERE = "commandr.CohereDecoderLayer"
_GRANITE = "granite.GraniteDecoderLayer"
_OWN = {
    "arcee": "Arcee",
    "bitnet": "BitNet",
    "cwm": "Cwm",
    "diffllama": "DiffLlama",
    "dots1": "Dots1",
    "flex_olmo": "FlexOlmo",
    "glm": "Glm",
    "helium": "Helium",
    "hunyuan_v1_dense": "HunYuanDenseV1",
    "hunyuan_v1_moe": "HunYuanMoEV1",
    "ministral": "Ministral",
    "mistral4": "Mistral4",
    "nanochat": "NanoChat",
    "olmo": "Olmo",
    "olmo2": "Olmo2",
    "olmo3": "Olmo3",
    "persimmon": "Persimmon",
    "phi": "Phi",
    "seed_oss": "SeedOss",
    "smollm3": "SmolLM3",
    "solar_open": "SolarOpen",
    "starcoder2": "Starcoder2",
    "vaultgemma": "VaultGemma",
}
"""Transformers' own blocks, by the beginning of their class's name."""

BLOCKS: dict[str, Blocks] = {
    **{kind: _first(f"modeling_{kind}.{name}DecoderLayer", windows=True) for kind, name in _OWN.items()},
    "afmoe": _sum("afmoe.AfmoeDecoderLayer", windows=True),
    "cohere": _first(_COHERE),
    "cohere2": _first(_COHERE, windows=True),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "ernie4_5": _sum("llama.LlamaDecoderLayer"),
    "exaone4": _first("exaone4.Exaone4DecoderLayer", windows=True),
    "exaone_moe": _sum("exaone_moe.ExaoneMoeDecoderLayer", windows=True),
    "falcon": _first("falcon.FalconDecoderLayer"),
    "falcon_h1": _first("falcon_h1.FalconH1ParallelHybrid", states=True),
    "gemma": _sum("gemma.GemmaDecoderLayer"),
    "gemma2": _sum("gemma2.Gemma2DecoderLayer", windows=True),
    "gemma3_text": _sum("gemma3.Gemma3DecoderLayer", windows=True),
    "gemma4_text": _first("gemma4.Gemma4DecoderLayer", windows=True),
    "glm4": _sum("glm4.Glm4DecoderLayer"),
    "glm4_moe": _sum("glm4_moe.Glm4MoeDecoderLayer"),
    "glm4_moe_lite": _sum("glm4_moe_lite.Glm4MoeLiteDecoderLayer"),
    "gpt2": _first("gpt2.GPT2Block"),
    "gpt_neox": _first("modeling_gpt_neox.GPTNeoXLayer"),
    "gpt_oss": _sum("gpt_oss.TransformerBlock", windows=True),
    "granite": _first(_GRANITE),
    "granite_swa": _first(_GRANITE, windows=True),
    "granitemoe": _first("granitemoe.GraniteMoeDecoderLayer"),
    "granitemoehybrid": _first(
        "granitemoehybrid.GraniteMoeHybridAttentionDecoderLayer",
        "granitemoehybrid.GraniteMoeHybridMambaDecoderLayer",
        states=True,
    ),
    "granitemoeshared": _first("granitemoeshared.GraniteMoeSharedDecoderLayer"),
    "lfm2": _sum("lfm2.Lfm2AttentionDecoderLayer", "lfm2.Lfm2ShortConvDecoderLayer", states=True),
    "lfm2_moe": _sum(
        "lfm2_moe.Lfm2MoeAttentionDecoderLayer", "lfm2_moe.Lfm2MoeShortConvDecoderLayer", states=True
    ),
    "llama": _sum("llama.LlamaDecoderLayer"),
    "llama4_text": _sum("llama4.Llama4DecoderLayer", windows=True),
    "minicpm3": _first("minicpm3.MiniCPM3DecoderLayer"),
    "ministral3": _sum("mistral.MistralDecoderLayer"),
    "mistral": _sum("mistral.MistralDecoderLayer"),
    "mixtral": _sum("mixtral.MixtralDecoderLayer"),
    "nemotron": _sum("nemotron.NemotronDecoderLayer"),
    "nemotron_h": _sum(
        "nemotron_h.NemotronHAttentionDecoderLayer",
        "nemotron_h.NemotronHMLPDecoderLayer",
        "nemotron_h.NemotronHMambaDecoderLayer",
        states=True,
    ),
    "olmoe": _sum("olmoe.OlmoeDecoderLayer"),
    "opt": _first("opt.OPTDecoderLayer"),
    "phi3": _sum("llama.LlamaDecoderLayer"),
    "qwen2": _sum("qwen2.Qwen2DecoderLayer"),
    "qwen2_moe": _sum("qwen2_moe.Qwen2MoeDecoderLayer"),
    "qwen3": _sum("qwen3.Qwen3DecoderLayer"),
    "qwen3_moe": _sum("qwen3_moe.Qwen3MoeDecoderLayer"),
    "stablelm": _first("stablelm.StablelmDecoderLayer"),
    # To be compared.
    "dbrx": _first("dbrx.DbrxBlock"),
    "gemma4_unified_text": _first("gemma4.Gemma4DecoderLayer", windows=True),
    "gptj": _first("gpt_j.GPTJBlock"),
    "olmo_hybrid": _first("olmo_hybrid.OlmoHybridDecoderLayer", states=True),
    "phimoe": _sum("phimoe.PhiMoEDecoderLayer"),
    "qwen3_vl_text": _sum("qwen3.Qwen3DecoderLayer"),
    "qwen3_vl_moe_text": _sum("qwen3_moe.Qwen3MoeDecoderLayer"),
    "jetmoe": _first("modeling_jetmoe.JetMoeDecoderLayer"),
}
