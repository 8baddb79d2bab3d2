"""A small tokenizer of 320 tokens, those of images, videos and sounds among them."""

from __future__ import annotations

from typing import Any

from tests.small_tokenizer import TURNS, trained

VOCABULARY = 320

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|image|>",
    "<|video|>",
    "<|audio|>",
    "<|vision_start|>",
    "<|vision_end|>",
)
PAD, START, END, IMAGE, VIDEO, AUDIO, VISION_START, VISION_END = range(len(SPECIAL))

# What the merges are learned from: the words of a chat's markup become single tokens, most others stay bytes.
TEXT = (
    "system user assistant You are a helpful assistant.",
    "The answer is that there is nothing to say about the other one.",
    "What should I do with the money and when is the right time to ask?",
)


def tokenizer() -> Any:
    """Return a fast tokenizer with `<|im_end|>` as end and `<|endoftext|>` as padding."""
    roles = {"eos_token": SPECIAL[END], "pad_token": SPECIAL[PAD]}
    return trained(VOCABULARY, SPECIAL, TEXT, TURNS, **roles)
