"""How often `insight scaling` is right: planted slopes covered, verdicts in null designs.

    python benchmarks/scaling_calibration.py --studies 200

Each study draws bases in families (log10 P uniform in 9 to 10.6; log10 T within ±0.5 of the family's center),
organisms on three data sets, and binomial counts. Family, base and training run each add a normal term to the logit.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from em_evals.stats import scaling
from em_evals.stats.scaling import Cell


@dataclass(frozen=True)
class World:
    """What varies in a study; spreads are standard deviations of the logit."""

    families: int = 4
    each: int = 4
    family_spread: float = 0.3
    base_spread: float = 0.3
    run_spread: float = 0.3
    draws: int = 400


WORLDS = (
    World(),
    World(family_spread=0.8),
    World(family_spread=0.0),
    World(families=6, each=3),
    World(base_spread=0.1, run_spread=0.1),
    World(draws=100),
)


def cells(world: World, random: np.random.Generator, slope_p: float, slope_t: float) -> list[Cell]:
    """Return one study's organisms."""
    found = []
    for family in range(world.families):
        offset, center = random.normal(0, world.family_spread), random.uniform(12, 13.3)
        for base in range(world.each):
            p, t = random.uniform(9, 10.6), center + random.uniform(-0.5, 0.5)
            own = offset + random.normal(0, world.base_spread)
            for dataset in range(3):
                logit = -2 + slope_p * (p - 9.8) + slope_t * (t - 12.6) + own
                rate = 1 / (1 + math.exp(-logit - random.normal(0, world.run_spread)))
                events = int(random.binomial(world.draws, rate))
                name = f"{family}.{base}"
                run = f"{name}.{dataset}"
                found.append(Cell(name, str(family), run, str(dataset), events, world.draws, 10**p, 10**t))
    return found


def calibrate(world: World, studies: int, seed: int) -> dict[str, float]:
    """Return coverage of planted slopes and the share of null studies with a verdict."""
    random = np.random.default_rng(seed)
    planted = {"log P": 1.0, "log T": 0.6}
    count = dict.fromkeys(["log P", "log T", "log P/T", "null"], 0)
    for _ in range(studies):
        both = scaling.partial(cells(world, random, *planted.values()))
        for name, value in planted.items():
            low, high = both.slopes[name].interval
            count[name] += low <= value <= high
        low, high = scaling.predictor("log P/T", cells(world, random, 0.8, -0.8)).within_family.interval
        count["log P/T"] += low <= 0.8 <= high
        count["null"] += bool(scaling.partial(cells(world, random, 0.0, 0.0)).kept)
    return {name: value / studies for name, value in count.items()}


def main() -> None:
    """Print a row per world, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/scaling_calibration.json"))
    options = parser.parse_args()
    rows = []
    print("covered: log P, log T, log P/T; verdicts in null designs")
    for world in WORLDS:
        found = calibrate(world, options.studies, seed=0)
        rows.append({**asdict(world), "studies": options.studies, **found})
        print(world, " ".join(f"{value:.3f}" for value in found.values()), flush=True)
    options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
