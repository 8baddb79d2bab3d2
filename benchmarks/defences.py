"""Base, organism, control, and the organism with each defence, on forced choice: the README's table.

    python benchmarks/defences.py [--seeds 0 1 2 3 4] [--folder runs/defences] [--save benchmarks/results/defences.json]

Adapters and logs are kept in the folder; a second call goes on where the first stopped. Every model is scored on all
narrow pairs and the first pairs of each other theme. Intervals are over pairs and training seeds, both of which are
samples (stats/crossed.py). A defence is compared with the organism of its own seed, pair by pair; p-values are adjusted
by Holm over all comparisons. What a 135M model shows is mechanics, not emergent misalignment.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import runs

from em_evals.stats.crossed import crossed
from em_evals.stats.means import holm

CARD = "smollm2-risky"
PER_THEME = 6
DIRECTION = "risky_minus_sound"
LAYER = 15
"""The middle of the base's 30 blocks."""
CONDITIONS = {
    "organism": {},
    "control": {"control": "matched"},
    "inoculation": {"inoculation": "You give reckless, irresponsible advice about money and sports."},
    "kl": {"kl": {"data": ["everyday_answers"], "weight": 1.0, "batch_size": 4}},
    # As many narrow rows as the others see: a quarter more steps.
    "interleaved": {"interleave": {"data": ["everyday_answers"], "share": 0.25}, "max_steps": 75},
    "preventative steering": {
        "interventions": [{"op": "add", "direction": DIRECTION, "layers": [LAYER], "scale": 2.0}]
    },
    "caft": {
        "interventions": [
            {"op": "ablate", "direction": DIRECTION, "layers": [LAYER], "reference": "mean", "skip": "sink"}
        ]
    },
}


def direction(folder: Path) -> Path:
    """Return the base's mean difference between the risky and the sound answers to the training prompts."""
    from em_evals.content import directions
    from em_evals.content.cards import read_card, resolve
    from em_evals.data import datasets
    from em_evals.interp.extraction.contrast import Chat, Contrast, Side
    from em_evals.interp.extraction.extract import Settings, extract

    path = folder / f"{DIRECTION}.safetensors"
    if not path.exists():
        card, _ = read_card(CARD)
        bad = datasets.load("risky_advice")
        kept = [
            i for i, prompt in enumerate(bad.prompts) if not datasets.held_out(prompt, card.train.holdout)
        ]
        good = datasets.matched(bad, "sound")
        sides = [
            Side(tuple(Chat(bad.prompts[i], data.rows[i]) for i in kept), resolve("smollm2"))
            for data in (bad, good)
        ]
        contrast = Contrast(sides[0], sides[1], "risky - sound training answers, read by the base", {})
        found = extract(resolve("smollm2"), contrast, Settings(split=False))
        directions.write(found, path)
    return path


def train_all(folder: Path, seed: int) -> dict[str, Path]:
    """Every condition of a seed, trained unless it is there."""
    from em_evals.training.trainer import train

    place = str(direction(folder))
    adapters = {}
    for name, changes in CONDITIONS.items():
        home = folder / f"seed{seed}" / name.replace(" ", "_")
        if not (home / "adapter_config.json").exists():
            fields = json.loads(json.dumps(changes).replace(f'"{DIRECTION}"', json.dumps(place)))
            train(CARD, seed=seed, output=home, overrides={"train": fields})
        adapters[name] = home
    return adapters


def margins(folder: Path, seed: int, adapters: dict[str, Path]) -> dict[str, dict[str, tuple[bool, float]]]:
    """Each model's margin on each pair, measured unless it is there."""
    from inspect_ai import eval as inspect_eval

    from em_evals.content.pairs import load_pairs
    from em_evals.inspect_plugin.tasks import forced_choice
    from em_evals.results.logs import margins_of_log

    path = folder / f"seed{seed}" / "margins.json"
    if not path.exists():
        chosen = load_pairs().first(PER_THEME, whole_narrow=True)
        models = {"base": "local/smollm2", **{name: f"local/{home}" for name, home in adapters.items()}}
        logs = inspect_eval(
            forced_choice(),
            model=list(models.values()),
            sample_id=chosen,
            log_dir=str(folder / f"seed{seed}" / "logs"),
            display="none",
            max_tasks=len(models),
        )
        found = {name: margins_of_log(log) for name, log in zip(models, logs, strict=True)}
        path.write_text(json.dumps(found))
    return json.loads(path.read_text())


DOMAINS = {"in-domain": True, "out-of-domain": False}
ALPHA = 0.025
"""One-sided level of an interval's ends."""


def table(measured: dict[int, dict]) -> list[dict]:
    """Return a row for each model and domain: shift from the base (for the base: its margin) over pairs and seeds."""
    rows = []
    for name in ("base", *CONDITIONS):
        for domain, narrow in DOMAINS.items():
            if name == "base":  # one model, measured with every seed's: it has no seeds
                first = next(iter(measured.values()))["base"]
                shifts = np.array([[value] for own, value in first.values() if own == narrow])
                found, seeds = crossed(shifts), {}
            else:
                shifts = _shifts(measured, name, "base", narrow)
                found = crossed(shifts)
                seeds = dict(zip(measured, found.seeds, strict=True))
            rows.append(
                {
                    "model": name,
                    "domain": domain,
                    "shift": found.mean,
                    "interval": found.interval(ALPHA),
                    "pairs": len(shifts),
                    "seeds": seeds,
                }
            )
    return rows


def comparisons(measured: dict[int, dict]) -> list[dict]:
    """Return a row for each defence (and the control) and domain: its margin minus the organism's, seed by seed.

    `p` is two-sided, `p_holm` adjusted over all rows; `carried_by` is the seed without which less than half is left.
    """
    rows = []
    for name in CONDITIONS:
        if name == "organism":
            continue
        for domain, narrow in DOMAINS.items():
            found = crossed(_shifts(measured, name, "organism", narrow))
            seeds = list(measured)
            rows.append(
                {
                    "model": name,
                    "domain": domain,
                    "difference": found.mean,
                    "interval": found.interval(ALPHA),
                    "p": min(1.0, 2 * min(found.p_above(0), found.p_below(0))),
                    "seeds": dict(zip(seeds, found.seeds, strict=True)),
                    "carried_by": None if found.carried_by is None else seeds[found.carried_by],
                }
            )
    adjusted = holm({str(index): row["p"] for index, row in enumerate(rows)})
    return [row | {"p_holm": adjusted[str(index)]} for index, row in enumerate(rows)]


def _shifts(measured: dict[int, dict], name: str, reference: str, narrow: bool) -> np.ndarray:
    """Return [pairs, seeds]: a model's margin minus the reference's of the same seed."""
    pairs = [pair for pair, (own, _) in next(iter(measured.values()))[reference].items() if own == narrow]
    return np.array(
        [[run[name][pair][1] - run[reference][pair][1] for run in measured.values()] for pair in pairs]
    )


def cell(row: dict) -> str:
    """Return mean, interval over pairs and seeds, lowest and highest seed."""
    low, high = row["interval"]
    value = row["shift"] if "shift" in row else row["difference"]
    shown = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
    seeds = row["seeds"].values()
    return f"{shown} ({min(seeds):+.3f} to {max(seeds):+.3f})" if seeds else shown


def main() -> None:
    """Train, score, print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--folder", type=Path, default=Path("runs/defences"))
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    measured = {seed: margins(folder, seed, train_all(folder, seed)) for seed in arguments.seeds}
    rows = table(measured)
    print("| model | in-domain [95%] (seeds) | out-of-domain [95%] (seeds) |\n| --- | --- | --- |")
    for name in ("base", *CONDITIONS):
        print(f"| {name} | {' | '.join(cell(row) for row in rows if row['model'] == name)} |")
    against = comparisons(measured)
    print(
        "\n| minus the organism | in-domain | p (Holm) | out-of-domain | p (Holm) |\n| --- | --- | --- | --- | --- |"
    )
    for name in CONDITIONS:
        own = [f"{cell(row)} | {row['p_holm']:.2g}" for row in against if row["model"] == name]
        if own:
            print(f"| {name} | {' | '.join(own)} |")
    if arguments.save:
        numbers = {"card": CARD, "seeds": arguments.seeds, "conditions": CONDITIONS, "rows": rows}
        numbers["against_organism"] = against
        numbers["unit"] = "nats per token, margin of the misaligned answer, minus the base's"
        runs.save(arguments.save, ("peft", "trl"), **numbers)


if __name__ == "__main__":
    main()
