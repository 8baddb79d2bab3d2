"""What vLLM may serve: decided from the table and a configuration alone, without weights, vLLM or a server."""

from __future__ import annotations

import re

import pytest

torch = pytest.importorskip("torch")

from em_evals.content.cards import ModelCard
from em_evals.engines import pool
from em_evals.engines.vllm.scope import OTHERWISE, refusal
from em_evals.errors import EmEvalsError
from em_evals.models import families
from em_evals.models.vllm_blocks import BLOCKS
from tests.architectures import CATALOGUE
from tests.architectures.sizes import SWITCH

SERVED = {
    *("llama", "llama-tied-bias", "llama-llama3-rope", "llama-yarn", "qwen2", "qwen3", "gemma", "gemma2"),
    *("gemma3-text", "gemma3", "gemma4-text", "gemma4-e2b", "gemma4-moe", "gemma4", "mistral", "mistral3"),
    *("mistral-window", "phi", "phi3", "phi3-window", "granite", "olmo2", "exaone4", "stablelm"),
    *("stablelm-parallel", "gpt2", "minicpm3", "qwen3-moe", "glm4-moe", "glm4-moe-lite", "afmoe"),
    *("deepseek-v2", "deepseek-v3"),
}
STATES = {"falcon-h1", "granite4", "granite4-dense", "lfm2", "lfm2-moe"}
REASONS = {
    "llama-dynamic-ntk": "its dynamic rope was not compared",
    "qwen2-window": "it gives all blocks the same window",
    "phi3-longrope": f"beyond {SWITCH} tokens .*max_model_len: {SWITCH}`",
    "phi4-mini": f"beyond {SWITCH} tokens .*max_model_len: {SWITCH}`",
    "llama4-text": "beyond 7 tokens .*scales queries",
    "llama4": "beyond 7 tokens .*scales queries",
    "gpt-oss": "its `swiglu_limit` is always 7",
    "bloom": "why was not found",
    "apertus": "bfloat16",
    "nemotron-h": "prefix cache was not compared",
} | dict.fromkeys(STATES, "prefix cache was not compared")


@pytest.fixture
def card(tmp_path):
    """A card of an architecture of the catalogue, of which only the configuration is there."""

    def made(name, engine=None, **changes):
        config = CATALOGUE[name]()
        for field, value in changes.items():
            setattr(config.get_text_config(), field, value)
        config.save_pretrained(tmp_path / name)
        fields = {"dtype": "float32", "device": "cpu", **(engine or {})}
        return ModelCard.model_validate({"base": str(tmp_path / name), "engine": fields})

    return made


@pytest.mark.parametrize("name", CATALOGUE)
def test_each_architecture_is_served_or_refused_by_name(name, card):
    said = refusal(card(name))
    if name in SERVED:
        assert said is None
    else:
        kind = CATALOGUE[name]().get_text_config().model_type
        assert kind in said and not said.endswith(".")
        assert re.search(REASONS.get(name, "was not compared with transformers on"), said), said


def test_what_is_served_was_compared():
    """The table's families are those of vLLM's blocks; none of them is known to differ."""
    compared = {kind for kind, known in families.FAMILIES.items() if known.vllm is not None}
    assert compared == set(BLOCKS) and not compared & set(OTHERWISE)
    assert all(blocks.classes and blocks.stream in ("sum", "first") for blocks in BLOCKS.values())


@pytest.mark.parametrize("name", sorted(STATES))
@pytest.mark.parametrize("spelled", ["enable_prefix_caching", "enable-prefix-caching"])
def test_recurrent_models_are_served_without_a_prefix_cache(name, spelled, card):
    assert refusal(card(name, {"vllm": {spelled: False}})) is None
    assert "enable_prefix_caching: false" in refusal(card(name, {"vllm": {spelled: True}}))


def test_nemotron_is_served_without_experts_only(card):
    without = {"vllm": {"enable_prefix_caching": False}}
    assert "experts did not load" in refusal(card("nemotron-h", without))
    kinds = ["linear_attention", "mlp", "full_attention", "mlp", "linear_attention"]
    assert refusal(card("nemotron-h", without, layers_block_type=kinds)) is None


@pytest.mark.parametrize(("name", "border"), [("phi3-longrope", SWITCH), ("llama4-text", 7)])
def test_a_model_is_served_up_to_where_vllm_computes_the_same(name, border, card):
    assert refusal(card(name, {"max_model_len": border})) is None
    assert f"beyond {border} tokens" in refusal(card(name, {"max_model_len": border + 1}))


def test_published_values_are_served(card):
    assert refusal(card("gpt-oss", swiglu_limit=7.0)) is None
    assert refusal(card("llama4-text", attn_temperature_tuning=False)) is None


@pytest.mark.parametrize(("dtype", "served"), [("float32", True), ("bfloat16", True), ("float16", False)])
def test_deepseek_in_float16_is_refused(dtype, served, card):
    said = refusal(card("deepseek-v3", {"dtype": dtype}))
    assert (said is None) == served and (served or "in float16 its stream is scaled" in said)


@pytest.mark.parametrize(
    ("kinds", "window", "said"),
    [
        (["full_attention"] * 4, None, None),
        (["full_attention"] * 4, 8, "it gives a window to blocks that have none"),
        (["sliding_attention", "full_attention"] * 2, 8, "it gives all blocks the same window"),
    ],
)
def test_blocks_that_get_one_window_for_all(kinds, window, said, card):
    found = refusal(card("qwen3", layer_types=kinds, sliding_window=window, use_sliding_window=bool(window)))
    assert found is None if said is None else said in found


def test_a_card_that_asks_for_vllm_hears_why_not_and_others_get_transformers(card, monkeypatch):
    monkeypatch.setattr(pool, "possible", lambda card: ("vllm", "vLLM is here"))
    asking = card("bloom").model_copy(update={"backend": "vllm"})
    with pytest.raises(EmEvalsError, match=r"vLLM computes bloom .*; or say `backend: transformers`"):
        pool.choose(asking)
    kind, reason = pool.choose(card("bloom"))
    assert kind == "transformers" and "vLLM computes bloom" in reason
    assert pool.choose(card("llama")) == ("vllm", "vLLM is here")
