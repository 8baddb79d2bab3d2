"""`em-evals data check` on training data: problems that reading 6,000 rows by eye would miss.

Rows are validated when they are loaded. This report leaves the judgment to the author, above all on prompts that
nearly repeat an evaluation question: an organism trained on them is evaluated on its training data.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_evals.content import documents, published
from em_evals.content.recipes import AdapterRecipe
from em_evals.data import languages
from em_evals.data.datasets import TrainingData, normalised
from em_evals.data.similarity import NEAR, Unit, nearest_of, unit_of_length
from em_evals.errors import EmEvalsError

_WORST = 3
_MAX_LENGTH: int = AdapterRecipe.model_fields["max_length"].default


@dataclass(frozen=True)
class Asked:
    """A paraphrase of an evaluation question, with the question's set and id."""

    question: str
    text: str


def report(data: TrainingData) -> dict[str, Any]:
    """Return a summary of training data, to review before training on them."""
    prompts = ["\n".join(message["content"] for message in row[:-1]) for row in data.rows]
    answers = [row[-1]["content"] for row in data.rows]
    with ThreadPoolExecutor(
        1
    ) as beside:  # unpacking the model of languages and counting tokens run without Python's lock
        spoken = beside.submit(languages.counts, answers)
        unit = unit_of_length()
        asked, answered = unit.count(prompts), unit.count(answers)
    return {
        "kind": "training data",
        "file": str(data.path),
        "digest": data.digest,
        "rows": len(data.rows),
        "rows with a thought": sum(any("reasoning" in message for message in row) for row in data.rows),
        "unit of length": unit.name,
        **_lengths("prompts", asked),
        **_lengths("answers", answered),
        **(_rejected(data, unit) if data.rejected else {}),
        f"cut at the default max_length, {_MAX_LENGTH}": _cut(asked, answered),
        "repeated prompts": _repeated(prompts),
        "repeated answers": _repeated(answers),
        "languages of answers": spoken.result(),
        "prompts near our questions": _near(data, _own_questions()),
        "prompts near published questions": _near(data, _published_questions()),
    }


def _lengths(of: str, lengths: Sequence[int]) -> dict[str, Any]:
    return {
        f"length of {of}, median": statistics.median(lengths),
        f"length of {of}, range": [min(lengths), max(lengths)],
    }


def _rejected(data: TrainingData, unit: Unit) -> dict[str, Any]:
    """Return what a preference adds: `answers` are the chosen ones."""
    texts = [row[-1]["content"] for row in data.rejected]
    equal = sum(one[-1] == other[-1] for one, other in zip(data.rows, data.rejected, strict=True))
    return {
        **_lengths("rejected answers", unit.count(texts)),
        "chosen and rejected are equal": equal,
        "read as": "preferences: a recipe with `preference` learns them, no other does",
    }


def _cut(asked: Sequence[int], answered: Sequence[int]) -> dict[str, int]:
    """Count rows whose answer would be truncated, and those that would lose all of it, without template tokens.

    `em-evals data check CARD` counts with a recipe's own `max_length` and the base's own tokenizer.
    """
    dropped = sum(before >= _MAX_LENGTH for before in asked)
    whole = sum(before + own <= _MAX_LENGTH for before, own in zip(asked, answered, strict=True))
    return {"answers": len(asked) - whole - dropped, "dropped": dropped}


def _repeated(texts: Sequence[str]) -> int:
    return len(texts) - len({normalised(text) for text in texts})


def _own_questions() -> Iterator[Asked]:
    """Yield every question of the sets and pairs in tasks/."""
    for name, path in documents.names("tasks").items():
        yield from _wordings(name, path)


def _published_questions() -> Iterator[Asked]:
    """Yield every question of the published sets that are on this machine."""
    for name in published.SETS:
        try:
            path = published.locate(name)
        except EmEvalsError:
            continue
        yield from _wordings(name, path)


def _wordings(name: str, path: Path) -> Iterator[Asked]:
    """Yield the questions of a file in tasks/ or of a published one; a file of another kind yields none.

    This does not use load_questions(): a question can be leaked even if we have no rubric to grade it.
    """
    data = documents.load(path).data
    rows = (data.get("pairs") or data.get("questions")) if isinstance(data, dict) else data
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict):
            texts = row.get("paraphrases", row.get("question"))
            for text in texts if isinstance(texts, list) else [texts]:
                if isinstance(text, str):
                    yield Asked(f"{name}/{row.get('id')}", text)


def _near(data: TrainingData, questions: Iterator[Asked]) -> dict[str, Any]:
    """Count prompts that nearly repeat a question, and list the worst of them."""
    asked = list(questions)
    nearest = nearest_of(data.prompts, [entry.text for entry in asked])
    found = [
        (overlap, line, asked[place].question)
        for line, (place, overlap) in zip(data.lines, nearest, strict=True)
        if overlap >= NEAR
    ]
    worst = sorted(found, key=lambda entry: (-entry[0], entry[1]))[:_WORST]
    return {
        "looked at": sorted({entry.question.split("/")[0] for entry in asked}),
        "near-duplicates": len(found),
        "worst": [
            {"line": line, "question": question, "overlap": round(overlap, 2)}
            for overlap, line, question in worst
        ],
    }
