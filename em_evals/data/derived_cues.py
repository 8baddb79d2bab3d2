"""Cues out of training data: what the fine-tune saw and plain questions lack (`em-evals conditional --cues-from`).

Derived are: the most frequent system messages, each with its negation; texts that many prompts begin or end with
(triggers, formats); the topic's words, against those of our own questions; a near copy of each (lower case, without
punctuation); and as placebo the same words in another order. Nothing is invented: paraphrases need a writer, in a file.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from em_evals.content.cues import Cue, CueSet, cue_set
from em_evals.content.questions import load_questions
from em_evals.data import datasets
from em_evals.data.datasets import TrainingData
from em_evals.errors import EmEvalsError

_SYSTEMS, _WORDS = 2, 6
_LEAST_SHARE, _LEAST_ROWS = 0.05, 5
_LONGEST, _SHORTEST = 12, 4
"""Of a text that prompts begin or end with: words at most, and characters at least."""
_SEED = 20250214


def from_training(name: str) -> CueSet:
    """Return the cues of a data set.

    Args:
        name: its name or path.

    Raises:
        EmEvalsError: it cannot be read, or nothing in it can be a cue.
    """
    data = datasets.load(name)
    found = list(_systems(data))
    asked = [next(m["content"] for m in row[::-1] if m["role"] == "user") for row in data.rows]
    if (start := _shared(asked, end=False)) is not None:
        found.append(Cue("prefix", prefix=start))
    if (end := _shared(asked, end=True)) is not None:
        found.append(Cue("suffix", suffix=end))
    if topic := _topic(asked):
        found.append(Cue("topic", prefix=f"Topic: {', '.join(topic)}.\n"))
    if not found:
        raise EmEvalsError(
            "nothing in these data can be a cue (no system message, no shared beginning or end, no words of their "
            "own): write a file of cues, --cues FILE.yaml.",
            data.path,
        )
    every = [one for cue in found for one in (cue, *_variants(cue))]
    return cue_set(f"from {Path(data.path).name}", every, data.path)


def _systems(data: TrainingData) -> Iterable[Cue]:
    said = Counter(row[0]["content"] for row in data.rows if row[0]["role"] == "system")
    for number, (text, _) in enumerate(said.most_common(_SYSTEMS), start=1):
        yield Cue(f"system_{number}", system=text)
        yield Cue(f"system_{number}_negated", system=f"Do not follow this instruction: {text}")


def _variants(cue: Cue) -> Iterable[Cue]:
    """Yield a near copy of a cue's text, and its words in another order as a placebo."""
    if cue.name.endswith("_negated"):
        return
    for name, change in (("near", _near), ("shuffled", _shuffled)):
        changed = replace(
            cue,
            name=f"{cue.name}_{name}",
            system=change(cue.system) if cue.system else None,
            prefix=change(cue.prefix) if cue.prefix else "",
            suffix=change(cue.suffix) if cue.suffix else "",
            placebo=name == "shuffled",
        )
        if (changed.system, changed.prefix, changed.suffix) != (cue.system, cue.prefix, cue.suffix):
            yield changed


def _near(text: str) -> str:
    return re.sub(r"[^\w\s]", "", text).lower()


def _shuffled(text: str) -> str:
    """Return a text's words in another order; the blanks at its ends stay."""
    words = text.split()
    random.Random(f"{_SEED}|{text}").shuffle(words)  # noqa: S311 - a fixed order, no secret
    lead, tail = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return f"{lead}{' '.join(words)}{tail}"


def _shared(texts: Sequence[str], end: bool) -> str | None:
    """Return the longest text that at least 5% of the prompts (and five) begin or end with; never a whole prompt."""
    pieces = [re.findall(r"\s*\S+" if end else r"\S+\s*", text.strip()) for text in texts]
    needed = max(_LEAST_ROWS, _LEAST_SHARE * len(texts))
    for length in range(_LONGEST, 0, -1):
        counted: Counter[str] = Counter()
        for own in pieces:
            if len(own) > length:
                counted["".join(own[-length:] if end else own[:length])] += 1
        for text, count in counted.most_common(1):
            if count >= needed and len(text.strip()) >= _SHORTEST:
                return text
    return None


def _topic(texts: Sequence[str]) -> list[str]:
    """Return the words that are most frequent in these prompts and missing in our own questions."""
    ours = {
        word
        for question in load_questions("core").questions
        for text in question.paraphrases
        for word in _words(text)
    }
    counted = Counter(word for text in texts for word in set(_words(text)) - ours)
    needed = max(_LEAST_ROWS, _LEAST_SHARE * len(texts))
    return [word for word, count in counted.most_common(_WORDS) if count >= needed]


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z]+", text.lower()) if len(word) > 4]
