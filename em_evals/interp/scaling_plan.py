"""`em-evals insight scaling --plan`: the cards and commands of a study, and what it could find."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from em_evals import files
from em_evals.content import cards
from em_evals.content.questions import load_questions
from em_evals.data import datasets
from em_evals.errors import EmEvalsError
from em_evals.results.scaling_models import Models
from em_evals.stats import scaling_power
from em_evals.stats.scaling_power import PlannedBase, Power, World

SPREADS = (0.1, 0.2, 0.4)
"""Of bases of one size, in the logit: nobody knows it, so power is said for three."""


@dataclass(frozen=True)
class Settings:
    """What is trained on each base, and how it is asked.

    Attributes:
        recipe: the card whose recipe every organism takes.
        data: training data; each is an organism.
        seeds: training seeds of each.
        questions: the question set.
        epochs: draws of each wording.
        grader: the judge, as Inspect names models.
        rate: EM rate of the middle base, for the simulation.
        studies: simulated for each slope.
    """

    recipe: str
    data: tuple[str, ...]
    seeds: int = 2
    questions: str = "core"
    epochs: int = 5
    grader: str = "openai/gpt-4o"
    rate: float = 0.1
    studies: int = 1000


@dataclass(frozen=True)
class Plan:
    """What was written.

    Attributes:
        cards: the organisms' cards.
        draws: graded draws of each organism.
        powers: spread between bases of one size -> power.
        notes: what the design cannot tell.
    """

    folder: Path
    cards: tuple[str, ...]
    draws: int
    powers: dict[float, Power]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "cards": list(self.cards),
            "draws_per_organism": self.draws,
            "smallest_slope_at_80_percent": {
                str(spread): files.without_nan(one.smallest) for spread, one in self.powers.items()
            },
            "power": {
                str(spread): dict(zip(map(str, one.slopes), one.power, strict=True))
                for spread, one in self.powers.items()
            },
            "notes": list(self.notes),
        }


def write(models: Models, folder: Path, settings: Settings) -> Plan:
    """Simulate the design's power, then write its cards, `models.yaml` and `run.sh`.

    Args:
        models: the bases, each with its folder or hub id.
        folder: a new folder.
        settings: what is trained and asked.

    Raises:
        EmEvalsError: a base has no model or no tokens, the design cannot find a slope, a name is wrong, or the folder
            is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise EmEvalsError("this folder is not empty; name a new one.", folder)
    for row in models.rows:
        if row.model is None or row.tokens is None:
            lacks = "model" if row.model is None else "tokens"
            raise EmEvalsError(f"the base {row.base} has no `{lacks}`, which a plan needs.", models.path)
    recipe, _ = cards.read_card(settings.recipe)
    if recipe.train is None:
        raise EmEvalsError(f"the card {settings.recipe} has no recipe (`train`); name one that has.")
    for name in settings.data:
        datasets.load(name, pairs=recipe.train.preference is not None)
    asked = load_questions(settings.questions)
    draws = settings.epochs * sum(len(question.paraphrases) for question in asked.questions)
    powers = _powers(models, settings, draws)
    organisms = {
        f"{_name(row.base)}-{_name(name)}-s{seed}": (row, name, seed)
        for row in models.rows
        for name in settings.data
        for seed in range(settings.seeds)
    }
    if len(organisms) < len(models.rows) * len(settings.data) * settings.seeds:
        raise EmEvalsError("two bases or data sets would give cards of one name; rename one.", models.path)
    with files.atomic_folder(folder) as inside:
        (inside / "adapters").mkdir()
        for card, (row, name, seed) in organisms.items():
            own: dict[str, Any] = {
                "description": f"{row.base} on {name}, seed {seed}: one organism of a scaling study.",
                "extends": settings.recipe,
                "base": row.model,
                "revision": row.revision,
                "adapter": card,
                "architecture": None,
                "train": {"data": [name], "seed": seed},
            }
            (inside / "adapters" / f"{card}.yaml").write_text(_yaml(own), encoding="utf-8")
        listed = {
            "bases": [row.model_dump(exclude_defaults=True) for row in models.rows],
            "organisms": [
                {"card": card, "base": row.base, "dataset": name, "seed": seed}
                for card, (row, name, seed) in organisms.items()
            ],
        }
        (inside / "models.yaml").write_text(_yaml(listed), encoding="utf-8")
        (inside / "run.sh").write_text(_script(list(organisms), settings), encoding="utf-8")
    return Plan(folder, tuple(organisms), draws, powers, tuple(_notes(models, powers)))


def _powers(models: Models, settings: Settings, draws: int) -> dict[float, Power]:
    bases = [PlannedBase(row.family, row.parameters, row.tokens or 0.0) for row in models.rows]
    runs = len(settings.data) * settings.seeds
    try:
        return {
            spread: scaling_power.power(bases, runs, draws, World(settings.rate, spread), settings.studies)
            for spread in SPREADS
        }
    except ValueError as error:
        raise EmEvalsError(f"this design finds no slope on training tokens: {error}.", models.path) from None


def _script(organisms: Sequence[str], settings: Settings) -> str:
    """Return the commands, to be run in the plan's folder. Repeating them resumes what is unfinished."""
    every = ",".join(f"local/{card}" for card in organisms)
    return "\n".join(
        [
            "#!/bin/sh",
            "# Run in this folder. Each command may be repeated: what is finished is kept.",
            "set -e",
            *(f"em-evals train {card}" for card in organisms),
            f"inspect eval-set em_evals/freeform -T questions={shlex.quote(settings.questions)} "
            f"-T epochs={settings.epochs} --model {every} --model-role grader={shlex.quote(settings.grader)} "
            "--log-dir logs",
            "em-evals insight scaling logs --models models.yaml -o scaling.json",
            "",
        ]
    )


def _notes(models: Models, powers: dict[float, Power]) -> list[str]:
    notes = [
        "power holds for the assumed spreads and rate; a base's true spread is not known before bases of one size are "
        "compared.",
    ]
    if not next(iter(powers.values())).with_size:
        notes.append(
            "parameters are fixed within every family: T and P/T are one variable here, and the slope's sign tells "
            "them apart (EM that follows T rises with tokens, EM that follows P/T falls)."
        )
    if any(row.revision for row in models.rows):
        notes.append(
            "checkpoints of a pretraining often have no chat template, and training refuses a base without one."
        )
    return notes


def _name(text: str) -> str:
    """Return a name as a card may have it."""
    plain = Path(text).stem if text.endswith(datasets.ENDINGS) else text.rpartition("/")[2]
    kept = "".join(c if c.isalnum() or c in "._" else "-" for c in plain if c.isascii())
    return kept.strip("-.") or "x"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
