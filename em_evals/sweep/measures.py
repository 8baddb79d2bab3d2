"""Make the steps of a plan's measures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from typing import Any

from em_evals.content.sweep_plans import MeasureRow, SweepPlan, combinations, label
from em_evals.errors import EmEvalsError, nearest
from em_evals.sweep import apart, placeholders, relatives
from em_evals.sweep.models import SweepModel
from em_evals.sweep.placeholders import OF_A_MODEL, Places, text
from em_evals.sweep.steps import FOLDER, Step

_GATE = (0, 1, 3)
"""Exit codes of `em-evals gate` that are verdicts."""
_LIGHT = ("gate", "report", "rates")
"""Commands of em-evals that read what was measured, and no model."""


class Maker:
    """Makes steps; a measure that reads others' results is made after them.

    Args:
        plan: the plan.
        models: its models.
    """

    def __init__(self, plan: SweepPlan, models: Sequence[SweepModel]) -> None:
        self._plan = plan
        self._rows = {row.title: (number, row) for number, row in enumerate(plan.measures)}
        self._made: dict[str, list[Step]] = {}
        self._drawings: dict[str, Step] = {}
        tasks = [row.title for row in plan.measures if row.task is not None]
        by_name = {model.name: model for model in models}
        self._places = Places(by_name, relatives.of(plan, models), tasks, self._made)

    def steps(self) -> list[Step]:
        """Return the steps of all measures in the plan's order, what is drawn before the rest; without digests.

        Raises:
            EmEvalsError: a measure is wrong, or measures wait for each other in a circle; with the plan's line.
        """
        waits = {title: self._waits_for(number, row) for title, (number, row) in self._rows.items()}
        try:
            order = [*TopologicalSorter(waits).static_order()]
        except CycleError as error:
            circle = " -> ".join(error.args[1])
            raise self._plan.document.error(
                f"these measures wait for each other: {circle}.", ("measures",)
            ) from None
        for title in order:
            number, row = self._rows[title]
            try:
                self._made[title] = self._of_row(row)
            except EmEvalsError as error:
                raise self._plan.document.error(str(error), ("measures", number)) from None
        return [*self._drawings.values(), *(step for title in self._rows for step in self._made[title])]

    def _waits_for(self, number: int, row: MeasureRow) -> set[str]:
        found: set[str] = set()
        for mark in placeholders.marks(row.run):
            if mark == "logs" or mark.startswith("logs."):
                found |= set(self._places.tasks)
            elif mark.startswith("steps."):
                name = mark.removeprefix("steps.")
                if name not in self._rows:
                    raise self._plan.document.error(
                        f"there is no measure '{name}'; {nearest(name, self._rows)}", ("measures", number)
                    )
                found.add(name)
        return found

    def _of_row(self, row: MeasureRow) -> list[Step]:
        marks = placeholders.marks(row.run)
        prefixes = ("options.",) if row.task is None else ("options.", "args.")
        for axis in row.matrix:
            if not axis.startswith(prefixes) and axis not in marks:
                known = (
                    f"`args.{axis}` or `options.{axis}`"
                    if row.task
                    else f"{{{axis}}} in `run`, or `options.{axis}`"
                )
                raise EmEvalsError(f"the axis '{axis}' changes nothing; write {known}.")
        self._places.check(marks - row.matrix.keys(), list(self._rows))
        about_models = row.task is not None or bool(marks & OF_A_MODEL)
        chosen: Sequence[SweepModel | None] = self._chosen(row, marks) if about_models else [None]
        return [self._step(row, model, values) for model in chosen for values in combinations(row.matrix)]

    def _chosen(self, row: MeasureRow, marks: set[str]) -> list[SweepModel]:
        """Return the models that a measure is about: those that it names, and that have what it compares with."""
        models = self._places.models.values()
        fits = [
            model
            for model in models
            if any(fnmatchcase(name, one) for one in row.models for name in (model.name, model.card))
        ]
        if not fits:
            known = [model.name for model in models]
            raise EmEvalsError(
                f"no model is called {' or '.join(row.models)}; {nearest(row.models[0], known)}"
            )
        if marks & {"control", "logs.control"}:
            fits = [model for model in fits if model.name in self._places.relatives.controls]
            if not fits:
                raise EmEvalsError(
                    "none of the models has a control in the plan: add its card to `models` with the same axes, and "
                    "say `control_of: CARD` in that card or `controls: {CARD: CONTROL}` in the plan."
                )
        if "logs.base" in marks:
            fits = [model for model in fits if model.name in self._places.relatives.bases]
            if not fits:
                raise EmEvalsError("none of the models' bases is among the plan's `models`; add it there.")
        return fits

    def _step(self, row: MeasureRow, model: SweepModel | None, values: Mapping[str, Any]) -> Step:
        name = f"{row.title}/{_named(model, values)}"
        out = f"{FOLDER}/{name}"
        options = {**row.options, **_under("options.", values)}
        if model is not None and row.task is not None:
            args = {**row.args, **_under("args.", values)}
            words = _task(row.task, model, out, args)
            needs = {f"train/{model.name}"} if model.trained else set()
        else:
            filled = self._places.fill(row.run or "", model, values, out)
            words, needs = filled.words, filled.needs
        words += [word for key, value in options.items() for word in _option(key, value)]
        gate = words[:2] == ["em-evals", "gate"]
        light = words[0] == "em-evals" and words[1:2] and words[1] in _LIGHT
        step = Step(
            name,
            row.title,
            tuple(words),
            tuple(sorted(needs)),
            model.name if model else "",
            model.card if model else "",
            {**(model.factors if model else {}), **values},
            model.base if model and not light else "",
            tuple(row.accept) if row.accept is not None else _GATE if gate else (0,),
            light=bool(light),
        )
        if model is None or row.task is None:
            return step
        judge = apart.judge_of(row.task, args, options, model.name)
        return step if judge is None else self._graded(step, row, model, values, judge)

    def _graded(
        self, step: Step, row: MeasureRow, model: SweepModel, values: Mapping[str, Any], judge: apart.Judge
    ) -> Step:
        """Return the step that grades; the one that draws is kept, and shared by all judges."""
        drawn = apart.axes(values)
        name = f"{apart.DRAWS}/{row.title}/{_named(model, drawn)}"
        args, options = apart.drawing(
            row.task or "",
            {**row.args, **_under("args.", drawn)},
            {**row.options, **_under("options.", drawn)},
        )
        words = _task(row.task or "", model, f"{FOLDER}/{name}", args)
        words += [word for key, value in options.items() for word in _option(key, value)]
        factors = {**model.factors, **drawn}
        own = replace(step, name=name, measure=f"{row.title}.draws", command=tuple(words), factors=factors)
        self._drawings.setdefault(name, own)
        return replace(
            step,
            needs=tuple(sorted({*step.needs, name})),
            draws=name,
            light=not judge.loaded,
            base=judge.base,
        )


def _named(model: SweepModel | None, values: Mapping[str, Any]) -> str:
    """Return a step's name inside its measure."""
    own = re.sub(r"[^A-Za-z0-9_.@+-]+", "-", model.name) if model else ""
    return ".".join(filter(None, [own, label(values)])) or "all"


def _task(task: str, model: SweepModel, out: str, args: Mapping[str, Any]) -> list[str]:
    words = ["inspect", "eval-set", task, "--model", f"local/{model.name}", "--log-dir", out]
    return words + [word for key, value in args.items() for word in ("-T", f"{key}={text(value)}")]


def _under(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _option(key: str, value: Any) -> list[str]:
    """Return an option as words; a list is repeated, a mapping is KEY=VALUE, `true` a flag, and `false` nothing."""
    name = f"--{key}" if len(key) > 1 else f"-{key}"
    if isinstance(value, bool):
        return [name] if value else []
    if isinstance(value, list):
        return [part for one in value for part in _option(key, one)]
    if isinstance(value, Mapping):
        return [part for own, one in value.items() for part in _option(key, f"{own}={text(one)}")]
    return [name, text(value)]
