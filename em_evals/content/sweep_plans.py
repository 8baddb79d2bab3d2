"""Plans of sweeps: which models are made, and what is measured on each. A YAML file; `em-evals sweep PLAN` runs it.

A plan says what, and never where: the same file runs on a laptop, on Ray and on Slurm.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from em_evals.content import documents
from em_evals.content.recipes import Strict

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_LARGEST = 100_000
"""Combinations of one matrix; more is a mistake in the plan."""

Matrix = dict[str, list[Any]]


class ModelRow(Strict):
    """Models of one card: the card itself, or every combination of a matrix."""

    card: str | None = None
    """A card, PEFT folder, model folder or hub id, as after `local/`. Or an axis `card` of the matrix."""
    matrix: Matrix = Field(default={})
    """Card fields by their dotted names (`train.seed`, `train.method.rank`), each with the values that it takes."""
    train: dict[str, Any] | bool = True
    """Fields of the recipe that replace the card's. A card with a recipe is trained in the sweep's folder; `false`
    takes the adapter that the card has."""

    @model_validator(mode="after")
    def _has_card(self) -> ModelRow:
        if (self.card is None) == ("card" not in self.matrix):
            raise ValueError("name the `card`, or give the matrix an axis `card`; one of the two")
        if self.train is False and any(key.startswith("train.") for key in self.matrix):
            raise ValueError("`train: false` and an axis of the recipe exclude each other")
        return self

    @field_validator("matrix")
    @classmethod
    def _full(cls, matrix: Matrix) -> Matrix:
        return _checked(matrix)


class MeasureRow(Strict):
    """One measurement: an Inspect task of each model, or a command of em-evals."""

    name: str | None = Field(default=None, pattern=f"^{_NAME.pattern}$")
    """Default: the task's name, or the command's."""
    task: str | None = None
    """An Inspect task, as `inspect eval-set` takes it: `em_evals/freeform`."""
    run: str | None = None
    """A command, `em-evals …` or `inspect …`. {model}, {control} and {base} are models; {out} is the step's folder;
    {logs}, {logs.model}, {logs.control} and {logs.base} are the folders of the tasks' logs; {steps.NAME} is what the
    measure NAME wrote; {AXIS} is a value of the matrix. A command that names no model runs once."""
    args: dict[str, Any] = Field(default={})
    """Arguments of the task (Inspect's -T)."""
    options: dict[str, Any] = Field(default={})
    """Options of the command by their names without dashes in front (`epochs: 10`, `model-role: grader=…`)."""
    matrix: Matrix = Field(default={})
    """Values to repeat the measurement with: `args.KEY`, `options.KEY`, or the name of a placeholder in `run`."""
    models: list[str] = Field(default=["*"], min_length=1)
    """Which models, by names or cards; `*` stands for any text."""
    accept: list[int] | None = None
    """Exit codes that are a result. Default: 0; of the gate also 1 (worse) and 3 (inconclusive)."""

    @model_validator(mode="after")
    def _one_kind(self) -> MeasureRow:
        if (self.task is None) == (self.run is None):
            raise ValueError("a measure is a `task` or a `run`; one of the two")
        if self.run is not None and self.args:
            raise ValueError("`args` are a task's; write a command's into `run` or `options`")
        return self

    @field_validator("matrix")
    @classmethod
    def _full(cls, matrix: Matrix) -> Matrix:
        return _checked(matrix)

    @property
    def title(self) -> str:
        """The name, or a name made from the task or the command."""
        if self.name is not None:
            return self.name
        if self.task is not None:
            return re.sub(r"[^\w.-]+", "-", self.task.rpartition("/")[2].removesuffix(".py")).strip("-.")
        words = itertools.takewhile(
            lambda word: re.fullmatch(r"[a-z][a-z-]*", word), (self.run or "").split()[1:]
        )
        return "-".join(words) or "command"


class PlanFile(Strict):
    """A plan's file."""

    name: str | None = Field(default=None, pattern=f"^{_NAME.pattern}$")
    """The sweep's name; results land in runs/NAME. Default: the file's."""
    description: str = ""
    """What the sweep is for; not used."""
    models: list[ModelRow] = Field(min_length=1)
    """Rows of models, each a card or every combination of a matrix."""
    controls: dict[str, str] = Field(default={})
    """Which card is the matched control of which, beside what cards say (`control_of`)."""
    measures: list[MeasureRow] = Field(default=[])
    """What is measured on the models."""


@dataclass(frozen=True)
class SweepPlan:
    """A plan as read from its file.

    Attributes:
        name: the sweep's; results land in runs/NAME.
        models: rows of models.
        controls: which card is the matched control of which; added to what cards say (`control_of`).
        measures: what is measured.
        document: the file, to cite its lines.
    """

    name: str
    models: tuple[ModelRow, ...]
    controls: Mapping[str, str]
    measures: tuple[MeasureRow, ...]
    document: documents.Document


def load(path: Path) -> SweepPlan:
    """Read a plan.

    Raises:
        EmEvalsError: the file is not a plan; the sentence names the line.
    """
    document = documents.load(path)
    file = documents.validate(PlanFile, document)
    titles: dict[str, int] = {}
    for number, row in enumerate(file.measures):
        if row.title in titles or row.title == "train":
            raise document.error(
                f"two measures are called '{row.title}'; give this one a `name` of its own."
                if row.title in titles
                else "'train' is the name of the trainings; give this measure another `name`.",
                ("measures", number),
            )
        titles[row.title] = number
    return SweepPlan(
        file.name or path.stem, tuple(file.models), file.controls, tuple(file.measures), document
    )


def combinations(matrix: Matrix) -> Iterator[dict[str, Any]]:
    """Yield each combination of a matrix's values, the last axis fastest; without axes, one empty combination.

    >>> [one for one in combinations({"seed": [1, 2], "rank": [8]})]
    [{'seed': 1, 'rank': 8}, {'seed': 2, 'rank': 8}]
    """
    for values in itertools.product(*matrix.values()):
        yield dict(zip(matrix, values, strict=True))


def label(factors: Mapping[str, Any]) -> str:
    """Return factors as part of a file's name: the last word of each axis and its value.

    >>> label({"train.seed": 1, "train.learning_rate": 1e-05})
    'seed-1.learning_rate-1e-05'
    """
    return ".".join(f"{key.rpartition('.')[2]}-{_slug(value)}" for key, value in factors.items())


def _slug(value: Any) -> str:
    text = str(value) if not isinstance(value, Mapping | Sequence) or isinstance(value, str) else repr(value)
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip("-.") or "none"


def _checked(matrix: Matrix) -> Matrix:
    size = 1
    for axis, values in matrix.items():
        if not values:
            raise ValueError(f"the axis '{axis}' has no values")
        seen = [_slug(value) for value in values]
        if len(set(seen)) < len(seen):
            raise ValueError(f"the axis '{axis}' names a value twice")
        size *= len(values)
    if size > _LARGEST:
        raise ValueError(f"the matrix has {size:,} combinations, more than {_LARGEST:,}")
    return matrix
