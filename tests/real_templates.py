"""Published chat templates as the installed trl package ships them, on a tokenizer that has their special tokens."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.chat_templates import CASES
from tests.small_tokenizer import small_tokenizer

PLAIN = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Added tokens that are not special: they are a part of a draw's text."""
SPECIAL = (
    *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
    *("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>"),
)
_ENDS = {"deepseek_r1_distill": "<｜end▁of▁sentence｜>", "gptoss": "<|return|>"}
SMOLLM3 = "SmolLM3"
"""Not among trl's: the small template with its marks (tests/chat_templates.py)."""


def published(name: str) -> str:
    """Return a template's text; skip where trl does not ship it."""
    if name == SMOLLM3:
        return next(case.text for key, case in CASES.items() if "SmolLM3" in key)
    found = find_spec("trl")
    places = found.submodule_search_locations if found is not None else None
    path = Path(next(iter(places or [""])), "chat_templates", f"{name}.jinja")
    if not path.is_file():
        pytest.skip(f"the installed trl ships no {path.name}")
    return path.read_text(encoding="utf-8")


@cache
def _plain() -> Any:
    from transformers import AddedToken

    made = small_tokenizer()
    made.add_tokens([AddedToken(text, special=False) for text in PLAIN])
    made.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    return made


def tokenizer_of(template: str, name: str = "") -> Any:
    """Return a small tokenizer of one's own with the template and the tokens of these families."""
    import copy

    made = copy.deepcopy(_plain())
    made.chat_template = template
    if name in _ENDS:
        made.eos_token = _ENDS[name]
    if name == "deepseek_r1_distill":
        made.bos_token = "<｜begin▁of▁sentence｜>"
    return made


def real(name: str) -> Any:
    """Return a small tokenizer with a published template."""
    return tokenizer_of(published(name), name)
