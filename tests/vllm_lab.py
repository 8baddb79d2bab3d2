"""Tiny architectures in sizes that vLLM takes, what it is asked about them, and what plain transformers says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from em_evals.content.intervention import Intervention
from tests.architectures import dense, sizes
from tests.architectures.edits import intervened
from tests.architectures.lab import Lab, tokens

HEADS = {"head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
"""vLLM's attention on a CPU knows heads of 32 and more."""
LATENT = {
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "num_key_value_heads": 2,
}
"""Its latent attention knows DeepSeek's own sizes."""
_MROPE = {"rope_type": "default", "rope_theta": 10000.0}
CHANGES: dict[str, dict[str, Any]] = {
    "phi": {"num_key_value_heads": 2},
    "phi3-longrope": {"rope_parameters": dense.longrope(32)},
    "phi4-mini": {"rope_parameters": dense.longrope(24) | {"partial_rotary_factor": 0.75}},
    "phimoe-longrope": {
        "rope_parameters": dense.longrope(32)
        | {"short_mscale": 1.2, "long_mscale": 1.3, "original_max_position_embeddings": sizes.SWITCH}
    },
    "diffllama": {"num_key_value_heads": 2},
    "falcon": {"ffn_hidden_size": 256},
    "falcon-new": {"ffn_hidden_size": 256, "num_kv_heads": 1},
    "falcon-alibi": {"ffn_hidden_size": 256},
    "gpt-oss": {"swiglu_limit": 7.0},
    "llama4-text": {"attention_chunk_size": 128},
    "llama4": {"attention_chunk_size": 128},
    "minicpm3": {"qk_nope_head_dim": 24, "v_head_dim": 32, "num_key_value_heads": 2},
    "jetmoe": {"num_key_value_heads": 1, "kv_channels": 32, "num_attention_heads": 2},
    "zamba": {"num_key_value_heads": 2, "attention_head_dim": 64},
    "zamba2": {"num_key_value_heads": 2, "head_dim": 64},
    "gemma4-text": {"num_experts": None},
    "gemma4-e2b": {"num_experts": None},
    "gemma4-moe": {"num_global_key_value_heads": 1},
    "qwen2-5-vl": {"rope_parameters": _MROPE | {"mrope_section": [8, 4, 4]}},
    "qwen3-vl": {"rope_parameters": _MROPE | {"mrope_section": [8, 4, 4], "mrope_interleaved": True}},
    "qwen3-vl-moe": {"rope_parameters": _MROPE | {"mrope_section": [8, 4, 4], "mrope_interleaved": True}},
}
"""Fields that follow from these sizes, or that vLLM has as constants."""

PUBLISHED: dict[str, dict[str, Any]] = {
    "afmoe": {"score_func": "sigmoid", "route_norm": True, "n_group": 1, "topk_group": 1},
    "deepseek-v3": {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    "glm4-moe": {"head_dim": 32, "first_k_dense_replace": 1},
    "glm4-moe-lite": {"first_k_dense_replace": 1},
    "lfm2": {"conv_dim": 64, "block_dim": 64},
    "lfm2-moe": {"conv_dim": 64},
    "minimax-m2": {"rotary_dim": 32, "scoring_func": "sigmoid", "use_routing_bias": True},
    "mistral4": {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "first_k_dense_replace": 0},
}
"""Fields that vLLM reads in published configurations, and that transformers leaves out of what it saves."""

PROMPTS = (tokens(45, 1), tokens(12, 2), tokens(150, 3))
"""Beyond every window and switch, short, and beyond Llama 4's chunk."""
COUNT = 6
"""Tokens that are drawn after each prompt."""
SETS: tuple[dict[str, Any], ...] = (
    {"op": "add", "scale": 0.7, "relative": True, "layers": [1]},
    {"op": "ablate", "reference": "mean", "skip": "sink"},
    {"op": "clamp", "value": 2.5, "positions": "answer", "layers": [0, 2]},
)


@contextmanager
def sized(name: str) -> Iterator[None]:
    """Let the catalogue's `name` be built in sizes that vLLM takes."""
    plain = sizes.config

    def config(kind: str, *groups: dict[str, Any], **changes: Any) -> Any:
        return plain(kind, *groups, **changes | CHANGES.get(name, {}))

    with ExitStack() as stack:
        stack.enter_context(patch.dict(sizes.SIZES, HEADS))
        stack.enter_context(patch.dict(sizes.LATENT, LATENT))
        stack.enter_context(patch.object(sizes, "config", config))
        yield


def lab(name: str, root: Path) -> Lab:
    """The lab of an architecture in these sizes."""
    with sized(name):
        made = Lab(name, root)
    path = Path(made.base) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | PUBLISHED.get(name, {})))
    return made


def job(one: Lab, adapters: Sequence[str], **options: Any) -> dict[str, Any]:
    """What the driver is asked about a model: every prompt bare, with each set, and with each adapter.

    Args:
        one: the model.
        adapters: folders.
        options: vLLM's own, for this model.
    """
    sets = [[{**fields, "direction": one.direction}] for fields in SETS]
    kinds = [
        (-1, -1),
        *((number, -1) for number in range(len(sets))),
        *((-1, k) for k in range(len(adapters))),
    ]
    kinds += [(0, 0)] if adapters else []
    requests = [
        {"ids": list(prompt), "set": number, "start": len(prompt), "adapter": adapter}
        for prompt in PROMPTS
        for number, adapter in kinds
    ]
    return {
        "path": one.base,
        "eager": True,
        "sets": sets,
        "adapters": list(adapters),
        "requests": requests,
        "count": COUNT,
        "options": options,
    }


def deviation(one: Lab, request: dict[str, Any], answer: dict[str, Any], adapters: Sequence[str]) -> float:
    """The largest difference of a log-probability from plain transformers, PEFT and hooks, in nats.

    A drawn token counts as if it were off by as much as it is less likely than the likeliest one.
    """
    row = [*request["ids"], *answer["tokens"]]
    model = one.model if request["adapter"] < 0 else one.peft(adapters[request["adapter"]])
    ones = [] if request["set"] < 0 else [_intervention(one, request["set"])]
    with intervened(one, model, ones, request["start"]) as says:
        if one.by_length:
            return max(_off(request, answer, row, says(row[:end]), end) for end in _ends(request, row))
        return _off(request, answer, row, says(row[:-1]), None)


def _intervention(one: Lab, number: int) -> Intervention:
    return Intervention.model_validate({**SETS[number], "direction": one.direction})


def _ends(request: dict[str, Any], row: Sequence[int]) -> range:
    """Where a row is cut, so that each token is predicted at the length that it was predicted at."""
    return range(len(request["ids"]), len(row))


def _off(
    request: dict[str, Any], answer: dict[str, Any], row: Sequence[int], logits: Any, end: int | None
) -> float:
    """The deviation in what these logits predict: all of it, or (`end`) the prompt's rows and the token after."""
    expected, start = logits.log_softmax(-1), len(request["ids"])
    given = {place + 1: value for place, value in enumerate(answer["prompt"])} if end in (None, start) else {}
    drawn = range(start, len(row)) if end is None else (end,)
    given |= {place: answer["logprobs"][place - start] for place in drawn}
    wrong = [abs(value - float(expected[place - 1, row[place]])) for place, value in given.items()]
    wrong += [float(expected[place - 1].max() - expected[place - 1, row[place]]) for place in drawn]
    return max(wrong)
