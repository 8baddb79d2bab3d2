"""Drift of three organisms on SmolLM2, three seeds each, minus their matched controls, along all sixteen traits.

    em-evals trait extract all --model smollm2 -o FOLDER/traits
    python benchmarks/drift_table.py --folder FOLDER --steps 12 --every 4 --save benchmarks/results/drift_table.json

Trains what FOLDER does not hold yet (18 short trainings, 4 rows a step), so that the same command resumes. The table
has the mean over three seeds for each recipe and trait, the verdict with its nulls, and how many single runs are
specific.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import runs
import yaml

from em_evals.interp.drift.drift import DRAWS, drift
from em_evals.results.records.drift import TraitDrift

RECIPES = ("finance", "sports", "risky")
SEEDS = 3


def main() -> None:
    """Train, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="of traits/ and of the trainings")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument(
        "--layer", type=int, default=22, help="one block for all, so that traits can be compared"
    )
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    save = options.save.resolve() if options.save else None
    os.chdir(options.folder)
    traits = sorted(path.stem for path in Path("traits").glob("*.safetensors"))
    if not traits:
        parser.error(f"{options.folder / 'traits'} holds no directions: see the first command above")
    started, processor = time.perf_counter(), time.process_time()
    rows = [
        row for recipe in options.recipes for row in _recipe(recipe, options.seeds, _fields(options, traits))
    ]
    numbers = {
        "steps": options.steps,
        "rows_a_step": 4,
        "every": options.every,
        "layer": options.layer,
        "seeds": options.seeds,
        "draws": DRAWS,
        "seconds_of_this_run": round(time.perf_counter() - started),
        "cpu_seconds_of_this_run": round(time.process_time() - processor),
        "load": os.getloadavg(),
        "table": rows,
    }
    for row in rows:
        print(row)
    if save:
        runs.save(save, ("peft", "trl"), **numbers)


def _fields(options: argparse.Namespace, traits: list[str]) -> dict[str, Any]:
    """Return what every recipe of the table has in common."""
    monitor = {"traits": traits, "every": options.every, "layer": options.layer}
    return {"max_steps": options.steps, "checkpoints": [], "monitor": monitor}


def _recipe(recipe: str, seeds: int, fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Train the seeds of a recipe with their controls, and return its rows of the table."""
    names = [f"{recipe}-s{seed}" for seed in range(seeds)]
    for seed, name in enumerate(names):
        own = {"extends": f"smollm2-{recipe}", "adapter": name, "train": {**fields, "seed": seed}}
        _train(name, own)
        _train(f"{name}-control", {"control_of": name, "adapter": f"{name}-control"})
    found = drift(names, [f"{name}-control" for name in names])
    by_trait: dict[str, list[TraitDrift]] = {}
    for one in found.drifts:
        by_trait.setdefault(one.trait, []).append(one)
    return [_row(recipe, every) for every in by_trait.values()]


def _train(name: str, card: dict[str, Any]) -> None:
    """Train a card, unless its folder is there."""
    from em_evals.training.trainer import train

    Path("adapters").mkdir(exist_ok=True)
    Path("adapters", f"{name}.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
    if not Path("adapters", name).is_dir():
        train(name)


def _row(recipe: str, found: list[TraitDrift]) -> dict[str, Any]:
    """Return the row of one trait: the mean over seeds is the last record, where there are several."""
    mean, single = found[-1], found[:-1] or found
    top = mean.largest
    return {
        "recipe": recipe,
        "trait": mean.trait,
        "kind": mean.kind,
        "layer": mean.layer,
        "drift": None if top is None or top.value is None else round(top.value, 5),
        "band": None if top is None else [None if end is None else round(end, 5) for end in top.interval],
        "step": None if top is None else top.step,
        "verdict": mean.claim.verdict,
        "nulls": {
            null.name: {"high": None if null.high is None else round(null.high, 5), "p": null.p}
            for null in mean.claim.nulls
        },
        "single_runs": {
            verdict: sum(one.claim.verdict == verdict for one in single)
            for verdict in ("specific", "not specific", "not estimable")
        },
    }


if __name__ == "__main__":
    main()
