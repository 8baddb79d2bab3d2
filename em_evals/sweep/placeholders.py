"""What the placeholders in a plan's commands stand for: models, folders of steps, values of axes."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from em_evals.errors import EmEvalsError, nearest
from em_evals.sweep.models import SweepModel
from em_evals.sweep.relatives import Relatives
from em_evals.sweep.steps import FOLDER, Step

_MARK = re.compile(r"\{([A-Za-z_][\w.-]*)\}")
COMMANDS = ("em-evals", "inspect")
"""A plan may start these, and nothing else: it is not a shell script."""
OF_A_MODEL = frozenset({"model", "control", "logs.model", "logs.control", "logs.base"})
"""A command with one of these runs for each model."""


def marks(command: str | None) -> set[str]:
    """Return the names of a command's placeholders.

    >>> sorted(marks("em-evals gate --candidate {logs.model} -o {out}/gate.json"))
    ['logs.model', 'out']
    """
    return set(_MARK.findall(command or ""))


def text(value: Any) -> str:
    """Return a plan's value as a command's word."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@dataclass
class Filled:
    """A command's words, and the steps that it waits for."""

    words: list[str] = field(default_factory=list)
    needs: set[str] = field(default_factory=set)

    def add(self, folders_of: Sequence[Step]) -> list[str]:
        """Note that the command reads these steps' folders, and return the folders.

        Raises:
            EmEvalsError: there are none.
        """
        if not folders_of:
            raise EmEvalsError(
                "it uses what no step of this plan makes; add a `task`, or another measure, for its models."
            )
        self.needs |= {step.name for step in folders_of}
        return [f"{FOLDER}/{step.name}" for step in folders_of]


@dataclass(frozen=True)
class Places:
    """What can be named in a command.

    Attributes:
        models: the plan's.
        relatives: their controls and bases.
        tasks: names of the measures that are tasks.
        made: the steps made so far by their measure.
    """

    models: Mapping[str, SweepModel]
    relatives: Relatives
    tasks: Sequence[str]
    made: Mapping[str, Sequence[Step]]

    def check(self, names: set[str], measures: Sequence[str]) -> None:
        """Refuse a placeholder that stands for nothing.

        Raises:
            EmEvalsError: there is one.
        """
        known = {*OF_A_MODEL, "base", "out", "logs", *(f"steps.{name}" for name in measures)}
        for name in sorted(names - known):
            raise EmEvalsError(f"there is no {{{name}}} to put into a command; {nearest(name, known)}")

    def fill(self, command: str, model: SweepModel | None, values: Mapping[str, Any], out: str) -> Filled:
        """Put words in place of placeholders; one that stands alone may become several words.

        Args:
            command: the plan's `run`.
            model: the model that the step is about.
            values: of the measure's axes.
            out: the step's folder.

        Raises:
            EmEvalsError: another program than em-evals or inspect, an open quote, or a placeholder without a meaning.
        """
        try:
            given = shlex.split(command)
        except ValueError as error:
            raise EmEvalsError(f"`run` cannot be split into words ({error}).") from None
        if not given or given[0] not in COMMANDS:
            raise EmEvalsError(
                f"a plan starts {' and '.join(COMMANDS)}, and no other program: begin `run` with one of them."
            )
        filled = Filled()
        for word in given:
            alone = _MARK.fullmatch(word)
            if alone:
                found = self._meaning(alone[1], model, values, out, filled)
                before = filled.words[-1] if filled.words[-1:] and filled.words[-1].startswith("-") else None
                # An option takes one folder: it is repeated. A flag may be, and what follows it stays where it is.
                filled.words += found[:1]
                for other in found[1:]:
                    filled.words += [other] if before is None else [before, other]
                continue
            for name in _MARK.findall(word):
                found = self._meaning(name, model, values, out, filled)
                if len(found) != 1:
                    raise EmEvalsError(
                        f"{{{name}}} means {len(found)} folders here; let it stand as a word of its own."
                    )
                word = word.replace(f"{{{name}}}", found[0])
            filled.words.append(word)
        return filled

    def _meaning(
        self, name: str, model: SweepModel | None, values: Mapping[str, Any], out: str, filled: Filled
    ) -> list[str]:
        if name in values:
            return [text(values[name])]
        if name == "out":
            return [out]
        if name.startswith("steps."):
            steps = self.made[name.removeprefix("steps.")]
            own = [step for step in steps if model is not None and step.model == model.name]
            return filled.add(own or [step for step in steps if model is None or not step.model])
        if name == "logs":
            return filled.add(self._logs(None))
        if name == "base":
            return [self._base(model)]
        _, _, of = name.rpartition(".")
        wanted = self._named(of, model)
        if name.startswith("logs."):
            return filled.add(self._logs(wanted))
        if self.models[wanted].trained:
            filled.needs.add(f"train/{wanted}")
        return [wanted]

    def _logs(self, model: str | None) -> list[Step]:
        return [
            step for title in self.tasks for step in self.made[title] if model is None or step.model == model
        ]

    def _named(self, of: str, model: SweepModel | None) -> str:
        """Return the name of the model, of its control, or of its base."""
        if model is None:
            raise EmEvalsError(f"{{{of}}} has no meaning in a command about all models.")
        if of == "model":
            return model.name
        return (self.relatives.controls if of == "control" else self.relatives.bases)[model.name]

    def _base(self, model: SweepModel | None) -> str:
        if model is not None:
            return self.relatives.bases.get(model.name, model.base)
        bases = sorted({one.base for one in self.models.values()})
        if len(bases) > 1:
            raise EmEvalsError(
                f"{{base}} means several bases here ({', '.join(bases)}); write {{model}} beside it."
            )
        return bases[0]
