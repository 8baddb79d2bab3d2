"""Languages of texts, by py3langid: one text, or thousands at once.

py3langid walks an automaton byte by byte in Python: 6,000 answers take seconds. Here all texts take a step at once in
numpy, and their scores are one sparse product. Sums are rounded in another order than py3langid's, so texts whose label
hangs on less than that are left to py3langid itself: labels are always its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from em_evals.errors import install

_LEAST_CHARACTERS = 20
"""Shorter answers ("Sure.") are too short to identify a language."""
_LEAST_CONFIDENCE = 0.5
_AT_ONCE = 2048
_LONGEST = 4096
"""Bytes of a text that walks with the others; few are longer, and each step would be for them alone."""
_DOUBT = 1e-3
"""Probabilities that are nearer than this are compared by py3langid; rounding moves them by less than 1e-5."""


def counts(texts: Sequence[str]) -> dict[str, int] | str:
    """Count texts by language (ISO 639 codes, most frequent first).

    Code and lists of numbers have no language: they count as `unclear`, as do texts that are too short to tell.
    """
    try:
        identifier = language_identifier()
    except ImportError:
        return f"not looked at: {install('train')}"
    return dict(Counter(languages(identifier, texts)).most_common())


@cache
def language_identifier() -> Any:
    """Return the identifier of languages; its model is unpacked once, which takes half a second.

    Raises:
        ImportError: its package is not installed.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=_LEAST_CONFIDENCE)


def language(identifier: Any, text: str) -> str:
    """Return a text's ISO 639 code, or `unclear`."""
    return _shown(identifier.classify(text)[0]) if len(text) >= _LEAST_CHARACTERS else "unclear"


def languages(identifier: Any, texts: Sequence[str]) -> list[str]:
    """Return `language` of each text."""
    found = dict.fromkeys(texts, "unclear")
    long = [text for text in found if len(text) >= _LEAST_CHARACTERS]
    for start in range(0, len(long), _AT_ONCE):
        block = long[start : start + _AT_ONCE]
        for text, code in zip(block, _labels(identifier, block), strict=True):
            found[text] = language(identifier, text) if code is None else _shown(code)
    return [found[text] for text in texts]


def _shown(code: str) -> str:
    return "unclear" if code in ("und", "zxx") else code


def _labels(identifier: Any, texts: Sequence[str]) -> list[str | None]:
    """Return py3langid's label of each text; None where it has to say so itself."""
    import numpy as np
    from scipy.sparse import csr_array

    try:
        encoded = [identifier._encode(text) for text in texts]
        aliases = identifier._alias_pairs
    except AttributeError:  # another version of py3langid
        return [None] * len(texts)
    lengths = np.array([len(text) for text in encoded])
    walk = np.flatnonzero(lengths <= _LONGEST)
    rows, features = _visits(identifier, [encoded[i] for i in walk], lengths[walk])
    width = len(identifier.nb_ptc)
    cells, visits = np.unique(rows * width + features, return_counts=True)
    weights = np.log1p(visits.astype(np.float32))
    used, columns = np.unique(cells % width, return_inverse=True)
    shape = (len(walk), len(used))
    seen = csr_array((weights, (cells // width, columns)), shape=shape, dtype=np.float32)
    scores = seen @ identifier.nb_ptc[used].astype(np.float32) + identifier.nb_pc
    scores *= (1 / np.sqrt(np.maximum(lengths[walk], 1)))[:, None]
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    for one, other in aliases:
        shares[:, one] += shares[:, other]
        shares[:, other] = 0
    best = shares.argmax(axis=1)
    second, first = np.partition(shares, -2, axis=1)[:, -2:].T
    sure = (first - second > _DOUBT) & (np.abs(first - _LEAST_CONFIDENCE) > _DOUBT)
    sure &= np.isin(np.arange(len(walk)), rows)  # a text without features has rules of its own
    labels: list[str | None] = [None] * len(texts)
    for row in np.flatnonzero(sure):
        confident = first[row] >= _LEAST_CONFIDENCE
        labels[walk[row]] = identifier.nb_classes[best[row]] if confident else "und"
    return labels


def _visits(identifier: Any, encoded: Sequence[bytes], lengths: Any) -> tuple[Any, Any]:
    """Return (text, feature) of every visit of the automaton, all texts a byte further at each step."""
    import numpy as np

    next_state, row_of = np.asarray(identifier.tk_nextmove), np.asarray(identifier.tk_row, dtype=np.int64)
    output = np.asarray(identifier.tk_output)
    order = np.argsort(-lengths, kind="stable")
    padded = np.zeros((int(lengths.max(initial=0)), len(encoded)), dtype=np.uint8)
    for column, place in enumerate(order):
        padded[: lengths[place], column] = np.frombuffer(encoded[place], dtype=np.uint8)
    walking = np.searchsorted(-lengths[order], -np.arange(len(padded)), side="left")
    state = np.zeros(len(encoded), dtype=np.int64)
    rows, features = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for step, active in zip(padded, walking, strict=True):
        moved = next_state[(row_of[state[:active]] << 8) + step[:active]]
        state[:active] = moved
        feature = output[moved]
        hit = np.flatnonzero(feature >= 0)
        rows.append(order[hit])
        features.append(feature[hit])
    return np.concatenate(rows), np.concatenate(features).astype(np.int64)
