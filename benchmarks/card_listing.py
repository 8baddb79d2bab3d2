"""How long `models list` takes with 2,000 cards, whole processes with their imports; columns as in verdict_speed.py.

Two libraries: one card of two lines and 1,999 that extend it, and copies of the cards that we ship.

    python benchmarks/card_listing.py [--repetitions 5] [--save]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import runs
import verdict_speed

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "card_listing.json"
CARDS, LIMIT = 2_000, 1.0
"""Cards of a library; seconds of processor time that a list may take."""


def write(folder: Path, texts: list[str]) -> None:
    """Write 2,000 cards with these texts in turn; `c0` is the first."""
    folder.mkdir(parents=True)
    for number in range(CARDS):
        (folder / f"c{number}.yaml").write_text(texts[number % len(texts)], encoding="utf-8")


def main() -> None:
    """Measure, print, keep with --save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    short = [
        "base: org/base\nadapter: a\n",
        *(f"extends: c0\ndescription: number {i}\n" for i in range(1, CARDS)),
    ]
    shipped = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "adapters").glob("*.yaml"))]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, texts in {
            "one card and 1,999 that extend it": short,
            "copies of shipped cards": shipped,
        }.items():
            home = Path(folder) / name
            write(home / "adapters", texts)
            os.chdir(home)  # ./adapters is where cards are looked for
            loop = round(verdict_speed.loop(), 2)
            found[name] = verdict_speed.measure(["models", "list"], given.repetitions) | {"loop": loop}
            print(name, found[name], flush=True)
        os.chdir(ROOT)
    if given.save:
        runs.save(RESULT, ("pydantic", "pyyaml", "rich"), cards=CARDS, limit=LIMIT, seconds=found)


if __name__ == "__main__":
    main()
