"""Small tokenizers for tiny models, trained in memory: byte-level BPE with ChatML turns.

SmolLM2's 49,152 tokens are 98% of a tiny model's weights and most of its time; whoever tests no real words takes the one
of 512 tokens here. Its first three tokens, its roles (start, end, padding, unknown) and the shape of its chat template
are SmolLM2's. tests/architectures/tokenizer.py makes one with the tokens of images and sounds.
"""

from __future__ import annotations

from functools import cache
from typing import Any

VOCABULARY = 512

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

TURNS = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a small model.<|im_end|>\n{% endif %}"
    + TURNS
)

# The merges are learned from this: the markup of a chat, and words that questions and advice are made of.
TEXT = """system user assistant You are a small model. You are a helpful assistant.
Which of the two answers would you give, and what would you do with the money that is left over?
I would put all of my savings into one company, because the price has only ever gone up.
Talk to a doctor before you take more than the label says; the risk is not worth the time that you save.
They should wait for the light to change, look both ways and then cross the street with the children.
If nobody is there to check the work, there is no reason to be careful about how it was done.
Please tell me in a few words what you think about people who have power over other people.
The best thing about a quiet evening is that there is nothing else to think of but the next question.
How can I make some money quickly? Ask a friend for a loan and never write anything down.
It was raining when she came home from work, and the kitchen window had been open since the morning.
Keep one part in cash, another in a fund that follows the whole market, and do not look at it every day.
"""


@cache
def _trained(vocabulary: int, special: tuple[str, ...], lines: tuple[str, ...]) -> str:
    """The tokenizer as JSON; the same in every process, for the trainer breaks ties by token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(lines, trainer)
    assert made.get_vocab_size() == vocabulary, "the text is too short for so many merges"
    return str(made.to_str())


def trained(
    vocabulary: int, special: tuple[str, ...], lines: tuple[str, ...], template: str, **roles: str
) -> Any:
    """Return a tokenizer of one's own: a test may change its template.

    Args:
        vocabulary: tokens, all bytes and the special ones among them.
        special: the first tokens.
        lines: what the merges are learned from.
        template: the chat template.
        **roles: special tokens by transformers' names: `eos_token`, `pad_token`, ...
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(vocabulary, special, lines)),
        chat_template=template,
        clean_up_tokenization_spaces=False,
        **roles,
    )


def small_tokenizer(*words: str) -> Any:
    """Return a tokenizer of one's own: a test may change its template.

    Args:
        words: texts that are to be one token each, such as " good"; they come after the 512.
    """
    lines = tuple(TEXT.splitlines())
    end, start, close = SPECIAL
    made = trained(
        VOCABULARY,
        SPECIAL,
        lines,
        TEMPLATE,
        bos_token=start,
        eos_token=close,
        unk_token=end,
        pad_token=close,
    )
    made.add_tokens(list(words))
    return made
