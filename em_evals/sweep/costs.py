"""What a sweep will cost before it starts: GPU hours of its trainings, and calls of its judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from em_evals.content import cards
from em_evals.errors import EmEvalsError
from em_evals.sweep.graph import Graph
from em_evals.sweep.models import SweepModel
from em_evals.sweep.steps import Step

_GRADES = 2
"""Judge calls a draw: alignment and coherence."""


@dataclass(frozen=True)
class Cost:
    """What one measure costs.

    Attributes:
        measure: its name.
        steps: how many.
        gpu_hours: of the trainings, on `gpu`; None where it is not known.
        judge_calls: None where it is not known; 0 without a judge.
        gpu: the GPU that the hours are for.
        note: where the numbers come from.
    """

    measure: str
    steps: int
    gpu_hours: float | None = None
    judge_calls: int | None = None
    gpu: str = ""
    note: str = ""

    @property
    def gpu_hours_cell(self) -> str:
        """Return the hours for a table."""
        return "" if self.gpu_hours is None else f"{self.gpu_hours:.2f} ({self.gpu})"

    @property
    def judge_calls_cell(self) -> str:
        """Return the calls for a table."""
        return "" if self.judge_calls is None else f"{self.judge_calls:,}"


def of(graph: Graph) -> list[Cost]:
    """Compute the costs by measure."""
    models = {model.name: model for model in graph.models}
    found = []
    for measure in dict.fromkeys(step.measure for step in graph.steps):
        steps = [step for step in graph.steps if step.measure == measure]
        if measure == "train":
            found.append(_trainings([models[step.model] for step in steps]))
        else:
            found.append(Cost(measure, len(steps), judge_calls=_judge_calls(steps)))
    return found


def _trainings(models: Sequence[SweepModel]) -> Cost:
    """Sum the hours of trainings, each on the smallest GPU of the plan that holds all of them."""
    from em_evals.training import planning
    from em_evals.training.recipe import recipe_of

    known: dict[str, planning.Plan] = {}
    plans = []
    for model in models:
        card, path = cards.read_card(model.card, model.fields)
        recipe = recipe_of(card, model.card, path)
        # A seed changes no size; and a model is counted once, because that takes seconds.
        same = card.base + recipe.model_copy(update={"seed": 0}).model_dump_json()
        try:
            known[same] = known.get(same) or planning.plan(card, recipe)
        except EmEvalsError as error:
            return Cost("train", len(models), note=f"no GPU hours: {error}")
        plans.append(known[same])
    for place, gpu in enumerate(plans[0].fits):
        fits = [plan.fits[place] for plan in plans]
        if all(one.count and one.hours is not None for one in fits):
            hours = sum((one.hours or 0) * (one.count or 0) for one in fits)
            return Cost(
                "train", len(models), hours, None, gpu.gpu, "GPU hours: as `em-evals train --plan` computes."
            )
    return Cost(
        "train", len(models), note="no GPU hours: none of the GPUs of `em-evals train --plan` fits all."
    )


def _judge_calls(steps: Sequence[Step]) -> int | None:
    """Count the judge's calls of tasks; None for a task that is not ours, or cannot be counted."""
    calls = 0
    for step in steps:
        if step.command[:2] != ("inspect", "eval-set"):
            return None
        words = list(step.command)
        task = words[2].removeprefix("em_evals/")
        told = dict(words[place + 1].partition("=")[::2] for place, word in enumerate(words) if word == "-T")
        if task not in ("freeform", "narrow", "conditional"):
            return 0 if words[2].startswith("em_evals/") else None
        ungraded = "--no-score" in words or told.get("judge") == "none"
        if ungraded or (task == "narrow" and "judge" not in told):
            continue
        made = _made(task, told)
        if made is None:
            return None
        samples, epochs = made
        if "--epochs" in words:
            epochs = int(words[words.index("--epochs") + 1])
        if "--limit" in words:
            samples = min(samples, int(words[words.index("--limit") + 1]))
        calls += samples * epochs * _GRADES
    return calls


def _made(task: str, told: dict[str, str]) -> tuple[int, int] | None:
    """Return a task's number of samples and epochs."""
    from em_evals import parsing
    from em_evals.inspect_plugin import registry

    maker = getattr(registry, task, None)
    if maker is None:
        return None
    try:
        made = maker(**{key: parsing.yaml_value(value) for key, value in told.items()})
    except (EmEvalsError, TypeError):
        return None
    return len(made.dataset), made.epochs or 1
