"""Expand a plan to its steps, each with a digest of all that it depends on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter

from em_evals import files
from em_evals.content.sweep_plans import SweepPlan
from em_evals.errors import EmEvalsError, nearest
from em_evals.sweep import contents
from em_evals.sweep.apart import DRAWS
from em_evals.sweep.measures import Maker
from em_evals.sweep.models import SweepModel, expand
from em_evals.sweep.steps import Step


@dataclass(frozen=True)
class Graph:
    """A plan's models, and its steps in the plan's order."""

    plan: SweepPlan
    models: tuple[SweepModel, ...]
    steps: tuple[Step, ...]

    def only(self, patterns: Sequence[str]) -> Graph:
        """Return the part with the steps whose names match, and all that they need.

        Args:
            patterns: names of measures (`forced_choice`), of steps, or patterns of them (`*/*seed-1*`).

        Raises:
            EmEvalsError: a pattern matches nothing.
        """
        by_name = {step.name: step for step in self.steps}
        wanted: set[str] = set()
        for pattern in patterns:
            left = [name for name in by_name if fnmatchcase(name, pattern) or name.startswith(f"{pattern}/")]
            if not left:
                raise EmEvalsError(f"--only {pattern}: there is no such step; {nearest(pattern, by_name)}")
            while left:
                name = left.pop()
                if name not in wanted:
                    wanted.add(name)
                    left += by_name[name].needs
        return replace(self, steps=tuple(step for step in self.steps if step.name in wanted))

    def settled(self, done: Set[str]) -> set[str]:
        """Return the finished steps, and those that draw what is graded already: whatever became of their files."""
        graded: dict[str, bool] = {}
        for step in self.steps:
            if step.draws:
                graded[step.draws] = graded.get(step.draws, True) and step.name in done
        return {*done, *(name for name, all_done in graded.items() if all_done)}


def build(plan: SweepPlan) -> Graph:
    """Expand a plan.

    Raises:
        EmEvalsError: a model or a measure is wrong; with the plan's line.
    """
    models = expand(plan)
    drafts = [*map(_training, (model for model in models if model.trained)), *Maker(plan, models).steps()]
    by_name = {step.name: step for step in drafts}
    by_model = {model.name: model for model in models}
    listed = contents.listed()
    whole: dict[str, Step] = {}
    for name in TopologicalSorter({step.name: step.needs for step in drafts}).static_order():
        whole[name] = _identified(by_name[name], whole, by_model, listed)
    return Graph(plan, tuple(models), tuple(whole[step.name] for step in drafts))


def _training(model: SweepModel) -> Step:
    return Step(
        f"train/{model.name}",
        "train",
        ("em-evals", "train", model.name),
        model=model.name,
        card=model.card,
        factors=model.factors,
        base=model.base,
    )


def _identified(
    step: Step,
    before: Mapping[str, Step],
    models: Mapping[str, SweepModel],
    listed: Sequence[contents.Content],
) -> Step:
    """Return the step with the digest of its command, of the content that it reads, and of the steps before it."""
    # What a step grades follows from its own command: the same task run whole is the same step.
    needs = [name for name in step.needs if name != step.draws]
    parts = [json.dumps([step.command, step.accept]), *(before[name].digest for name in needs)]
    # A model that is not trained here is named in the command, and has no step before.
    named = {word.removeprefix("local/") for word in step.command}
    parts += [models[name].digest for name in sorted(named & models.keys())]
    if step.measure != "train":
        drawn = step.name.startswith(f"{DRAWS}/")
        parts += contents.digests(
            step.command, [one for one in listed if not drawn or not one.label.startswith("scorers")]
        )
    return replace(step, digest=files.digest(*parts))
