"""How a task's texts are generated: lm-eval's settings, with what its `hf` takes from a base's generation_config.json.

Sampling takes top_p and top_k from there, as transformers does. What changes the probabilities themselves, such as the
repetition penalty of Qwen2.5's, is left out here and named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from em_evals.content.cards import ModelCard
from em_evals.engines.protocol import Sampling
from em_evals.engines.stops import stop_tokens
from em_evals.errors import EmEvalsError
from em_evals.models import bases

_PLAIN = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "use_cache": True,
    "early_stopping": False,
}
"""Options of transformers' generate that have no effect at these values and are refused at others."""
_TOP_K = 50
"""transformers' own, for sampling where neither the base nor the task has one."""
_CHANGE = (
    *(
        "repetition_penalty",
        "encoder_repetition_penalty",
        "no_repeat_ngram_size",
        "bad_words_ids",
        "sequence_bias",
    ),
    *(
        "suppress_tokens",
        "begin_suppress_tokens",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "guidance_scale",
    ),
    *("min_length", "min_new_tokens", "num_beams", "exponential_decay_length_penalty", "penalty_alpha"),
)
"""Fields of generation_config.json that change which text is greedy."""
_CHANGE_SAMPLES = ("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def sampling(gen_kwargs: Mapping[str, Any], max_gen_toks: int, card: ModelCard, tokenizer: Any) -> Sampling:
    """Return a task's sampling settings.

    Args:
        gen_kwargs: the task's.
        max_gen_toks: where the task has none.
        card: names the base, whose top_p and top_k apply to tasks that sample and have none.
        tokenizer: the base's.

    Raises:
        EmEvalsError: the engine does not support one of them.
    """
    asked = dict(normalize_gen_kwargs(dict(gen_kwargs), max_gen_toks))
    sampled, temperature = asked.pop("do_sample"), asked.pop("temperature", 0.0)
    if sampled and not temperature > 0:
        raise EmEvalsError(
            "a task that samples needs a temperature above 0, in generation_kwargs or by --gen_kwargs (lm-eval's `hf` "
            "takes 0 where there is none, and ends)."
        )
    base = bases.generation_config(card.base, card.revision) if sampled else {}
    settings = {
        "temperature": temperature if sampled else 0.0,
        "top_p": asked.pop("top_p", base.get("top_p") or 1.0),
        "top_k": asked.pop("top_k", base.get("top_k", _TOP_K) if sampled else None) or None,
        "max_tokens": asked.pop("max_gen_toks"),
        "stop": tuple(stop for stop in asked.pop("until") if stop),
    }
    for name, value in asked.items():
        if _PLAIN.get(name, object()) != value:
            raise EmEvalsError(
                f"em-local does not support the generation setting '{name}={value}'; it supports do_sample, "
                "temperature, top_p, top_k, until and max_gen_toks."
            )
    stop_tokens(tokenizer, settings["stop"])
    return Sampling(**settings)


def left_out(card: ModelCard, gen_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what lm-eval's `hf` would take from a base's generation_config.json, and texts are drawn without here.

    Args:
        card: names the base.
        gen_kwargs: the task's; what it sets itself counts for both.
    """
    base = bases.generation_config(card.base, card.revision)
    return {
        name: base[name]
        for name in (*_CHANGE, *(_CHANGE_SAMPLES if gen_kwargs.get("do_sample") else ()))
        if base.get(name) not in (None, 0, 1, [], {}) and name not in gen_kwargs
    }


def sentence(base: str, settings: Mapping[str, Any]) -> str:
    """Return the notice of settings that are left out."""
    named = ", ".join(f"{name}: {json.dumps(value)[:40]}" for name, value in settings.items())
    return (
        f"{base} asks for {named} in generation_config.json, which lm-eval's `hf` applies to generated texts and "
        "em-local does not: compare them with `hf` without it only, as by --gen_kwargs repetition_penalty=1.0."
    )
