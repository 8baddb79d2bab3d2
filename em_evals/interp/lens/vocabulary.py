"""Token sets of training data by their own word frequencies, and whether a lens favors them: a permutation test.

Two data sets give two sets of tokens. They are found on one half of the rows and kept where the other half agrees. The
null exchanges the tokens' labels among tokens of like frequency: a lens that favors frequent words favors both sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_evals.data import datasets
from em_evals.data.datasets import TrainingData
from em_evals.errors import EmEvalsError
from em_evals.interp import nulls
from em_evals.models.chat import encode_text
from em_evals.results.records.claims import Claim
from em_evals.stats import permutation

Floats = NDArray[np.float64]

DRAWS = 999
LEAST = 10
"""Tokens that each set needs."""
_LETTERS = 3
_PRIOR = 1000.0
"""Tokens that the prior weighs: it shrinks the odds of rare words."""
_LEVEL = 1.96
_MOST = 200
_STRATA = 5
NULL = "permuted vocabulary"


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Two sets of tokens, of one data set against another.

    Attributes:
        data: name of the data set, and `other` of the one that it is compared with.
        ids: int [tokens], both sets.
        own: bool [tokens], whether a token is the data set's.
        frequency: float [tokens], in both data sets together.
        found: tokens found on the first half of the rows; `ids` are those that the other half confirms.
    """

    data: str
    other: str
    ids: NDArray[np.int64]
    own: NDArray[np.bool_]
    frequency: Floats
    found: int

    def claim(self, logits: Floats, measure: str, seed: int = 0) -> Claim:
        """Test whether a lens favors the data set's tokens over the other's, at the best of its layers.

        Args:
            logits: [layers, tokens of the vocabulary], standardized.
            measure: the lens in words.
            seed: of the permutations.
        """
        kept = logits[:, self.ids]
        ranks = np.argsort(np.argsort(self.frequency, kind="stable"), kind="stable")
        strata = [str(rank * _STRATA // len(self.ids)) for rank in ranks]
        drawn = permutation.labels(self.own, strata, DRAWS, seed)
        contrast = _difference(kept, np.vstack([self.own, drawn]))
        return nulls.claim(measure, contrast[0], {NULL: contrast[1:]}, required=(NULL,))


def of(tokenizer: Any, data: TrainingData, other: TrainingData, size: int) -> Vocabulary:
    """Return the tokens that tell two data sets apart.

    Log-odds with an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008, equation 22). Tokens are words or
    beginnings of words of three letters or more, of questions and answers alike.

    Args:
        tokenizer: the base's.
        data: the data set.
        other: what it is compared with.
        size: number of the tokenizer's tokens.

    Raises:
        EmEvalsError: the sets have too few tokens.
    """
    halves = [[_counts(tokenizer, one, half, size) for half in (True, False)] for one in (data, other)]
    total = halves[0][0] + halves[0][1] + halves[1][0] + halves[1][1]
    words = _words(tokenizer, total)
    first = np.where(words, log_odds(halves[0][0], halves[1][0]), 0.0)
    second = log_odds(halves[0][1], halves[1][1])
    sides = [_largest(first), _largest(-first)]
    confirmed = [side[sign * second[side] > 0] for side, sign in zip(sides, (1, -1), strict=True)]
    if min(map(len, confirmed)) < LEAST:
        raise EmEvalsError(
            f"only {min(map(len, confirmed))} words tell {data.name} from {other.name} in both halves of their rows, "
            f"and a test needs {LEAST}: give more rows, or another data set.",
            data.path,
        )
    ids = np.concatenate(confirmed)
    own = np.arange(len(ids)) < len(confirmed[0])
    return Vocabulary(data.name, other.name, ids, own, total[ids], sum(map(len, sides)))


def log_odds(one: Floats, other: Floats) -> Floats:
    """Return z of each token's log-odds in one count against the other; 0 where it is in neither.

    Example:
        >>> z = log_odds(np.array([9.0, 1.0, 0.0]), np.array([1.0, 9.0, 0.0]))
        >>> bool(z[0] > 0 > z[1]), float(z[2])
        (True, 0.0)
    """
    pooled = one + other
    prior = _PRIOR * pooled / max(pooled.sum(), 1.0)
    there = pooled > 0
    sides = []
    for counts in (one, other):
        with_prior = np.where(there, counts + prior, 1.0)
        sides.append((with_prior, np.log(with_prior) - np.log(counts.sum() + _PRIOR - with_prior + 1e-9)))
    error = np.sqrt(1 / sides[0][0] + 1 / sides[1][0])
    return np.asarray(np.where(there, (sides[0][1] - sides[1][1]) / error, 0.0))


def _difference(logits: Floats, labels: NDArray[np.bool_]) -> Floats:
    """Return [labelings, layers]: the mean over one set's tokens minus the mean over the other's."""
    weights = labels / labels.sum(1, keepdims=True) - ~labels / (~labels).sum(1, keepdims=True)
    return np.asarray(np.round(weights @ logits.T, 9))


def _largest(z: Floats) -> NDArray[np.int64]:
    order = np.argsort(-z, kind="stable")[:_MOST]
    return np.asarray(order[z[order] > _LEVEL])


def _counts(tokenizer: Any, data: TrainingData, half: bool, size: int) -> Floats:
    """Count the tokens of the rows in one half; a prompt's rows are all in one."""
    counts = np.zeros(size)
    for prompt, row in zip(data.prompts, data.rows, strict=True):
        if datasets.held_out(prompt, 0.5) == half:
            for message in row:
                counts += _bincount(encode_text(tokenizer, message["content"]), size)
    return counts


def _bincount(ids: Sequence[int], size: int) -> NDArray[np.int64]:
    return np.bincount([one for one in ids if one < size], minlength=size)


def _words(tokenizer: Any, counts: Floats) -> NDArray[np.bool_]:
    """Return [tokens], whether a token is a word or the beginning of one."""
    there = np.flatnonzero(counts)
    found = np.zeros(len(counts), dtype=bool)
    found[there] = list(map(_is_word, decoded(tokenizer, there)))
    return found


def decoded(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """Return each token as text."""
    return list(tokenizer.batch_decode([[int(one)] for one in ids]))


def _is_word(text: str) -> bool:
    return text.strip().isalpha() and len(text.strip()) >= _LETTERS
