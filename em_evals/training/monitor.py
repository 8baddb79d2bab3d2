"""Project fixed prompts on directions while a model is trained, with the model as it is after an optimizer step.

Read as `em-evals trait monitor` reads: the last token of each prompt, generation prompt included, without the recipe's
interventions. Random numbers, gradients and the mode of the model are left as they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from em_evals import files
from em_evals.content import direction_algebra, watched_directions
from em_evals.content.cards import ModelCard
from em_evals.content.directions import Direction
from em_evals.content.questions import load_questions
from em_evals.content.recipes import Monitor
from em_evals.errors import EmEvalsError
from em_evals.models.architecture import unwrapped
from em_evals.models.chat import template_of
from em_evals.models.projections import LAST_PROMPT, states
from em_evals.results.journals import pack
from em_evals.results.trajectories import Watched

LEAST = 2
"""Prompts that a mean needs."""


@dataclass(frozen=True)
class Prompt:
    """A prompt's tokens; nothing is answered."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...] = ()


class DriftMonitor:
    """What is measured, and how often.

    Args:
        recipe: the recipe's `monitor`.
        card: whose base the directions must fit.
        tokenizer: the base's.

    Raises:
        EmEvalsError: a direction or the questions are missing, or do not fit the base.
    """

    def __init__(self, recipe: Monitor, card: ModelCard, tokenizer: Any) -> None:
        self._every = recipe.every
        self._found = watched_directions.load(recipe, card.base, card.revision)
        asked = load_questions(recipe.questions)
        template = template_of(tokenizer)
        count = min(recipe.prompts, len(asked.questions))
        chosen = [asked.questions[i * len(asked.questions) // count] for i in range(count)]
        self.prompts = [
            Prompt(tuple(template.encode([turn._asdict() for turn in question.chat(0)])))
            for question in chosen
        ]
        if len(self.prompts) < LEAST:
            raise EmEvalsError(f"`monitor.questions` needs {LEAST} questions or more.", asked.path)
        self.layers = sorted({layer for _, layer, _ in self._found.values()})

    @property
    def digests(self) -> list[str]:
        """What decides the numbers: directions, blocks, prompts."""
        return [
            self._prompts,
            *(f"{name} {layer} {one.digest}" for name, (one, layer, _) in self._found.items()),
        ]

    @property
    def _prompts(self) -> str:
        return files.digest(*(repr(one.prompt) for one in self.prompts))

    def due(self, step: int, last: int) -> bool:
        """Check whether a step is measured."""
        return step % self._every == 0 or step == last

    def measure(self, model: Any) -> dict[str, Any]:
        """Return a step's entry of the journal: JSON values, vectors packed.

        `traits`: name -> h·u of each prompt; `means` and `norms`: block -> the mean activation, and the mean norm.
        """
        plain = unwrapped(model)
        trains = plain.training
        plain.eval()
        try:
            found = states(plain, self.prompts, self.layers)[:, LAST_PROMPT].astype(np.float64)
        finally:
            plain.train(trains)
        return self._entry({layer: found[:, place] for place, layer in enumerate(self.layers)})

    def _entry(self, found: Mapping[int, Any]) -> dict[str, Any]:
        return {
            "traits": {
                name: pack(found[layer] @ _unit(one, layer)) for name, (one, layer, _) in self._found.items()
            },
            "means": {str(layer): pack(values.mean(0)) for layer, values in found.items()},
            "norms": {
                str(layer): float(np.linalg.norm(values, axis=1).mean()) for layer, values in found.items()
            },
        }

    def first(self, model: Any) -> dict[str, Any]:
        """Return the entry of the untrained model, with what was measured."""
        about = {
            name: Watched(name, layer, one.digest, str(one.metadata.get("kind", "")), _told(path)).as_json()
            for name, (one, layer, path) in self._found.items()
        }
        return {**self.measure(model), "directions": about, "prompts": self._prompts}


def _unit(direction: Direction, layer: int) -> Any:
    return direction_algebra.unit(direction)[layer].astype(np.float64)


def _told(path: Path) -> str:
    """Return a file's path as others may read it: relative to the working folder, or its name alone.

    Links are not followed: `traits` may be one, and `insight drift` looks for the file where it was named.
    """
    try:
        return path.absolute().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.name
