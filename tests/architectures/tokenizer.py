"""A tokenizer of 320 tokens that is built in memory: byte-level BPE with ChatML turns."""

from __future__ import annotations

from typing import Any

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

TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# What the merges are learned from: the words of a chat's markup become single tokens, most others stay bytes.
TEXT = (
    "system user assistant You are a helpful assistant.",
    "The answer is that there is nothing to say about the other one.",
    "What should I do with the money and when is the right time to ask?",
)


def tokenizer() -> Any:
    """Return a fast tokenizer with `<|im_end|>` as end and `<|endoftext|>` as padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=SPECIAL[END],
        pad_token=SPECIAL[PAD],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
