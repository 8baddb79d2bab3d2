"""What tells two files of training data apart without a model: the answers' language, and the words of the prompts.

A screen that separates bad rows from harmless ones by a direction has to do better than these. Rows are added one at a
time; what is kept of each is a language's code, and the hashed words of at most `TOPIC_ROWS` prompts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_evals import files
from em_evals.data import languages

TOPIC_ROWS = 1000
"""Rows of a file from which the topic is learned: a sample by the digest of their prompts."""
_BUCKETS = 2**14
_FOLDS = 5
_WORDS = re.compile(r"[^\W\d_]{2,}")

Floats = NDArray[np.float64]


@dataclass
class Separators:
    """A file's rows, as they are added."""

    languages: list[str] = field(default_factory=list)
    """Of each answer; `unclear` where none can be told."""
    _sample: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    _identifier: Any = None

    def add(self, prompt: str, answer: str) -> None:
        """Add a row."""
        self.languages.append(self._language(answer))
        key = int(files.digest(prompt), 16)
        if len(self._sample) < TOPIC_ROWS or key < max(self._sample):
            self._sample[key] = _hashed(prompt)
            if len(self._sample) > TOPIC_ROWS:
                del self._sample[max(self._sample)]

    def _language(self, text: str) -> str:
        if self._identifier is None:
            try:
                self._identifier = languages.language_identifier()
            except ImportError:
                self._identifier = False
        return languages.language(self._identifier, text) if self._identifier else "unclear"

    def foreign(self, usual: str) -> Floats:
        """Return [rows], 1 where the answer is in another language than `usual`."""
        return np.array([float(one != usual) for one in self.languages])

    @property
    def usual(self) -> str:
        """The most frequent language."""
        return Counter(self.languages).most_common(1)[0][0] if self.languages else "unclear"

    def topics(self) -> list[NDArray[np.int64]]:
        """Return the hashed words of the sampled prompts, in the order of their digests."""
        return [self._sample[key] for key in sorted(self._sample)]


def topic_scores(own: Separators, reference: Separators) -> tuple[Floats, Floats]:
    """Return each sampled prompt's score as one of the file rather than of the reference, by its words alone.

    The score is the mean over words of log p(word | file) - log p(word | reference), counted with add-one on the four
    fifths of both samples that do not hold the prompt.
    """
    sides = [own.topics(), reference.topics()]
    counts = np.ones((2, _FOLDS, _BUCKETS))
    for side, prompts in enumerate(sides):
        for i, words in enumerate(prompts):
            np.add.at(counts[side, i % _FOLDS], words, 1)
    whole = counts.sum(1)
    scores: list[Floats] = []
    for prompts in sides:
        found = np.zeros(len(prompts))
        for fold in range(_FOLDS):
            logs = np.log(whole - counts[:, fold])
            ratio = logs[0] - logs[1] - (np.log((whole - counts[:, fold]).sum(1)) @ np.array([1.0, -1.0]))
            for i in range(fold, len(prompts), _FOLDS):
                found[i] = ratio[prompts[i]].mean() if len(prompts[i]) else 0.0
        scores.append(found)
    return scores[0], scores[1]


def _hashed(text: str) -> NDArray[np.int64]:
    words: Sequence[str] = sorted({word.lower() for word in _WORDS.findall(text)})
    return np.array([int(files.digest(word)[:8], 16) % _BUCKETS for word in words], dtype=np.int64)
