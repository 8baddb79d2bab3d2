"""What ladders of checkpoints could find: the smallest slope on log10 T with 80% power.

    python benchmarks/scaling_plans.py

The bases are places on a log scale of tokens, as public checkpoints have them; no base is loaded.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from em_evals.stats.scaling_power import PlannedBase, World, power

DESIGNS = {
    "one ladder of 8 checkpoints, 0.1 to 11T": [8],
    "one ladder of 12 checkpoints, 0.1 to 11T": [12],
    "three ladders of 6 checkpoints, 0.1 to 4T": [6, 6, 6],
}
SPREADS = (0.1, 0.2, 0.4)


def main() -> None:
    """Print a row per design, and write them."""
    found = {}
    for name, steps in DESIGNS.items():
        last = 4e12 if len(steps) > 1 else 1.1e13
        bases = [
            PlannedBase(str(family), 10.0 ** (9 + family / 2), float(tokens))
            for family, count in enumerate(steps)
            for tokens in np.geomspace(1e11, last, count)
        ]
        own = {
            str(spread): power(bases, runs=6, draws=360, world=World(base_spread=spread), studies=4000)
            for spread in SPREADS
        }
        freedom = next(iter(own.values())).freedom
        smallest = {spread: round(one.smallest, 2) for spread, one in own.items()}
        found[name] = {"freedom": freedom, "smallest": smallest, "level": own["0.2"].power[0]}
        print(f"| {name} | {freedom} | " + " | ".join(f"{value:.2f}" for value in smallest.values()) + " |")
    path = Path(__file__).parent / "results" / "scaling_plans.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
