"""Write the items of `em_mini` again: `python tasks/retention/generate.py`. The same seed gives the same files.

Positions are dealt out here: over a family the right answer stands equally often in each place.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from families import FAMILIES, Asked

SEED = 20250614
CANARY = "em-evals-canary-5d0f6c5e-6f0b-4b7c-9a1e-2f6a3c9d7b41"
ITEMS = Path(__file__).parent / "items"


def rows(name: str) -> Iterator[dict[str, Any]]:
    """Return a family's items as lm-eval reads them."""
    random = Random(f"{SEED} {name}")  # noqa: S311 - a seed is the point
    asked = _mixed(list(FAMILIES[name](random)))
    places = _places(random, asked)
    for number, (one, place) in enumerate(zip(asked, places, strict=True), start=1):
        row: dict[str, Any] = {"id": f"{name}_{number:03}", "level": one.level, "question": one.question}
        if one.choices:
            wrong = [choice for choice in one.choices if choice != one.answer]
            random.shuffle(wrong)
            row |= {"choices": [*wrong[:place], one.answer, *wrong[place:]], "answer": place}
        else:
            row |= {"target": one.answer}
        yield row | {"canary": CANARY}


def _mixed(asked: list[Asked]) -> list[Asked]:
    """Levels take turns, so that the first items of a file (lm-eval's --limit) are of every level."""
    seen: Counter[int] = Counter()
    turns = []
    for one in asked:
        turns.append((seen[one.level], one.level))
        seen[one.level] += 1
    return [asked[i] for i in sorted(range(len(asked)), key=turns.__getitem__)]


def _places(random: Random, asked: list[Asked]) -> list[int]:
    """Return the right answer's place in each item, every place equally often."""
    width = max(1, *(len(one.choices) for one in asked))
    places = [i % width for i in range(len(asked))]
    random.shuffle(places)
    return places


def main() -> None:
    """Write every family's file."""
    ITEMS.mkdir(exist_ok=True)
    for name in FAMILIES:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(name))
        (ITEMS / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
