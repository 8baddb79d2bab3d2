"""What is known about architectures: one table, and the layouts of a batch that it allows.

A layout decides how much sequences may share while every one of them is computed as if it were alone. What is not
in the table is not trusted: it is computed one sequence at a time, as transformers' own `generate` would.
tests/architectures compares each entry with plain transformers; docs/architectures.md is what that run found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from em_evals.models.vllm_blocks import BLOCKS, Blocks


@dataclass(frozen=True)
class Family:
    """The models of one `model_type`.

    Attributes:
        share: with full attention in every block, positions and masks of ours are followed to the letter: a common
            beginning may be computed once, and texts may be laid as a tree.
        pack: training may lay rows end to end behind our own attention function (training/packing.py).
        eager: the only attention implementation that computes what the model was trained with, where transformers'
            default is another (Gemma 2: scaled-dot-product attention ignores the soft cap).
        vllm: vLLM's decoder blocks, after a comparison of draws and steering with transformers; None where there was
            none, or it failed (docs/vllm.md).
    """

    share: bool = False
    pack: bool = False
    eager: bool = False
    vllm: Blocks | None = None


_PLAIN = Family(share=True)
"""Attention over all earlier tokens, by position and mask alone."""
_ROWS = Family()
"""Rows of different lengths are exact, padded on the left. Gaps between a row's tokens would not be, as sharing makes
them: windows and alibi count columns, and states run on from column to column."""

_PLAIN_TYPES = """
    apertus arcee cohere deepseek_v2 deepseek_v3 dots1 ernie4_5 ernie4_5_moe flex_olmo glm glm4 glm4_moe
    glm4_moe_lite gpt_neox granite granitemoe helium hunyuan_v1_dense longcat_flash ministral3 mixtral nemotron
    olmo olmo2 olmoe phi phi3 qwen2_moe qwen3_moe qwen3_vl_text seed_oss smollm3 stablelm starcoder2
""".split()  # noqa: SIM905 - a list of words reads better as text
_ROW_TYPES = """
    afmoe bamba bitnet bloom cohere2 cwm dbrx diffllama exaone4 exaone_moe falcon falcon_h1 gemma3n_text
    gemma4_text gemma4_unified_text gpt2 gpt_bigcode gpt_neo gpt_oss gptj granite_swa granitemoe_swa
    granitemoehybrid granitemoeshared hunyuan_v1_moe jamba jetmoe kimi_linear lfm2 lfm2_moe llama4_text
    mimo_v2_flash minicpm3 minimax_m2 ministral mistral4 mpt nanochat nemotron_h olmo3 olmo_hybrid opt
    persimmon phimoe qwen2_5_vl_text qwen3_5_moe_text qwen3_5_text qwen3_next qwen3_vl_moe_text solar_open
    zamba zamba2
""".split()  # noqa: SIM905 - a list of words reads better as text

_KNOWN: dict[str, Family] = {
    **dict.fromkeys(_PLAIN_TYPES, _PLAIN),
    **dict.fromkeys(_ROW_TYPES, _ROWS),
    "llama": Family(share=True, pack=True),
    "mistral": Family(share=True),
    "qwen2": Family(share=True, pack=True),
    "qwen3": Family(share=True, pack=True),
    "gemma": Family(share=True, pack=True),
    "gemma2": Family(eager=True),
    "gemma3_text": Family(),
    "vaultgemma": Family(eager=True),
}
FAMILIES = {kind: replace(known, vllm=BLOCKS.get(kind)) for kind, known in _KNOWN.items()}


@dataclass(frozen=True)
class Layout:
    """How sequences of a model may be computed together.

    Attributes:
        rows: sequences of different lengths share a batch, join it and leave it. Otherwise each is alone.
        share: what they begin with may be computed once; texts may be laid as a tree.
        pack: training may lay rows end to end.
        border: a length beyond which something depends on the batch and not on the row; None: there is none.
        mixed: sequences beyond the border may share a batch with each other; otherwise each is alone.
        limit: tokens of a sequence beyond which what is computed depends on what was read before (dynamic NTK keeps
            the factors of the longest sequence); None: there is no such length.
    """

    rows: bool = False
    share: bool = False
    pack: bool = False
    border: int | None = None
    mixed: bool = True
    limit: int | None = None

    def side(self, tokens: int) -> bool:
        """On which side of the border a sequence of so many tokens lies: only one side may be in a batch."""
        return self.border is not None and tokens > self.border

    def alone(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens shares a batch with no other."""
        return not self.rows or (self.side(tokens) and not self.mixed)


def family(config: Any) -> Family | None:
    """The table's entry for a model's configuration (of transformers; composite ones by their text part)."""
    return FAMILIES.get(config.get_text_config().model_type)


def layout(config: Any) -> Layout:
    """The layout that is exact for a model.

    Args:
        config: the model's configuration, of transformers.
    """
    known = family(config)
    text = config.get_text_config()
    if known is None:
        return Layout(limit=_rope_limit(text))
    rope, scale = rope_border(text), _scale_border(text)
    full = rope is None and scale is None and not _windowed(text)
    return Layout(
        rows=True,
        share=known.share and full,
        pack=known.pack and full,
        border=scale or rope,
        mixed=scale is None,
        limit=_rope_limit(text),
    )


def _windowed(text: Any) -> bool:
    """Whether some block sees less than all earlier tokens, or carries a state from one to the next."""
    kinds = getattr(text, "layer_types", None)
    if kinds is None:  # Mistral, Phi-3, Mixtral, Starcoder 2: the window stands alone
        return getattr(text, "sliding_window", None) is not None
    return any(kind != "full_attention" for kind in kinds)


def _scale_border(text: Any) -> int | None:
    """Llama 4 scales queries by their column in the cache, in steps of `floor_scale`; below the first step by 1."""
    if not getattr(text, "attn_temperature_tuning", False):
        return None
    return int(text.floor_scale) - 1


def rope_border(text: Any) -> int | None:
    """Longrope chooses its factors by the largest position in the batch (Phi-3-mini-128k, Phi-4-mini)."""
    borders = [int(one["original_max_position_embeddings"]) for one in _ropes(text, "longrope")]
    return min(borders, default=None)


def _rope_limit(text: Any) -> int | None:
    return int(text.max_position_embeddings) if _ropes(text, "dynamic") else None


def _ropes(text: Any, kind: str) -> list[dict[str, Any]]:
    """A configuration's rope parameters of a kind; some models have a set for each type of layer."""
    found = getattr(text, "rope_parameters", None) or {}
    sets = [one for one in found.values() if isinstance(one, dict)] or [found]
    return [one for one in sets if one.get("rope_type") == kind]
