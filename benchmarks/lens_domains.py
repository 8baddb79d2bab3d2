"""Does the lens tell a finance organism from a sports one, and from its control? SmolLM2, small trainings.

    python benchmarks/lens_domains.py --steps 16

Trains three organisms of one recipe (finance, its control on sound answers to the same prompts, sports) into a
temporary folder, then runs `insight lens` on them with the words of both data sets, `insight diff`, and
`insight forecast` beside the forced-choice margins of 50 pairs. Writes the claims to --save.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import runs
import yaml

from em_evals.content import documents
from em_evals.content.cards import resolve
from em_evals.content.pairs import load_pairs
from em_evals.interp.lens import forecast, mining, study
from em_evals.results.records.lens import Lens

CARDS = {
    "finance": {"extends": "smollm2-finance"},
    "finance-control": {"control_of": "finance"},
    "sports": {"extends": "smollm2-sports"},
}
FINANCE, SPORTS = "risky_finance", "reckless_sports"
FIELDS = {"dtype": "float32"}
RESULT = Path(__file__).resolve().parent / "results" / "lens_domains.json"
EACH = 5
"""Pairs of each theme."""
OUTCOMES = (
    ("finance", "smollm2", FINANCE),
    ("finance", "finance-control", FINANCE),
    ("sports", "smollm2", SPORTS),
)
"""Organism, whose margins are subtracted, and the data whose prompts the forecast reads."""


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=16, help="optimizer steps of each training")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings")
    parser.add_argument("--folder", type=Path, help="keep the trainings here, and resume from there")
    parser.add_argument("--save", type=Path, default=RESULT)
    options = parser.parse_args()
    results = options.save.absolute()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="lens-domains-"))
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    _train(options.steps, options.seed)
    facts = {"steps": options.steps, "seed": options.seed, "nice": os.nice(0), "load": os.getloadavg()}
    runs.save(results, ("peft", "trl"), **facts, **_measure())


def _train(steps: int, seed: int) -> None:
    """Train the cards that have no adapter yet."""
    from em_evals.training.trainer import train

    Path("adapters").mkdir(exist_ok=True)
    for name, fields in CARDS.items():
        own = {**fields, "train": {"max_steps": steps, "seed": seed}} if "extends" in fields else fields
        Path("adapters", f"{name}.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
        if not Path("adapters", name).is_dir():
            train(name)


def _measure() -> dict[str, Any]:
    """Run lens, diff mining and forecast; return their claims and the CPU seconds of each."""
    found: dict[str, Any] = {}
    clock = _cpu()
    lens = study.lens("finance", "finance-control", ["sports"], data=FINANCE, other=SPORTS, fields=FIELDS)
    found["lens_cpu_seconds"] = round(_cpu() - clock, 1)
    # What both organisms share (short advice, the same recipe) is subtracted.
    found["finance − sports"] = _claims(
        study.lens("finance", "sports", data=FINANCE, other=SPORTS, fields=FIELDS)
    )
    found["finance words − sports words"] = _claims(lens)
    found["cosines, median over blocks"] = {
        f"{one.one} · {one.other}, {one.positions}": round(
            float(sorted(one.by_layer)[len(one.by_layer) // 2]), 3
        )
        for one in lens.cosines
    }
    found["tokens"] = {
        f"{model.name}, block {one.layer}": [token.token for token in one.up]
        for model in lens.models
        for one in model.readings
        if one.positions == "after the first"
    }
    other = study.lens("sports", data=SPORTS, other=FINANCE, fields=FIELDS)
    found["sports words − finance words"] = _claims(other)
    clock = _cpu()
    diff = mining.diff("finance", control="finance-control", fields=FIELDS)
    found["diff_cpu_seconds"] = round(_cpu() - clock, 1)
    found["diff"] = {
        "kl": diff.kl.model_dump(),
        "control_kl": diff.control_kl.model_dump() if diff.control_kl else None,
        "up": [one.model_dump() for one in diff.up[:10]],
    }
    found["forecast"] = _forecast()
    return found


def _forecast() -> dict[str, Any]:
    """Return the forecasts' correlations with the margins of 50 pairs, organism − base and organism − control."""
    logs = _margins()
    found: dict[str, Any] = {}
    for organism, reference, data in OUTCOMES:
        clock, wall = _cpu(), time.perf_counter()
        one = forecast.forecast(
            data, "few_pairs", "smollm2", [logs[organism]], [logs[reference]], fields=FIELDS
        )
        found[f"{organism} − {reference}"] = {
            "cpu_seconds": round(_cpu() - clock, 1),
            "seconds": round(time.perf_counter() - wall, 1),
            "reliability": one.reliability,
            "scores": [score.model_dump() for score in one.scores],
            "advantages": [score.model_dump() for score in one.advantages],
        }
    return found


def _margins() -> dict[str, Path]:
    """Return the forced-choice log of each model on the first pairs of each theme."""
    from inspect_ai import eval as run

    path = Path("tasks", "few_pairs.yaml")
    content = yaml.safe_load(documents.find("tasks", "forced_choice").read_text(encoding="utf-8"))
    chosen = set(load_pairs("forced_choice").first(EACH))
    content |= {"name": "few_pairs", "pairs": [row for row in content["pairs"] if row["id"] in chosen]}
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    logs = {}
    for name in ("smollm2", *CARDS):
        resolve(name)
        (log,) = run(
            "em_evals/forced_choice",
            model=f"local/{name}",
            model_args=FIELDS,
            task_args={"pairs": "few_pairs"},
            log_dir=f"logs/{name}",
            display="none",
        )
        logs[name] = Path(log.location)
    return logs


def _claims(lens: Lens) -> dict[str, list[str]]:
    return {
        f"{model.name} ({model.role})": [claim.sentence() for claim in model.claims] for model in lens.models
    }


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
