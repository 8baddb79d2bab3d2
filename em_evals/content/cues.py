"""Cues: changes of a prompt that may bring a behavior out which plain questions do not show. tasks/cues/NAME.yaml.

A cue is a system message, a text before or after the user's message, turns before it (few-shot), the beginning of the
answer, or several of these. A placebo is a cue that should do nothing. See arXiv 2604.25891.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from em_evals import files
from em_evals.content import documents
from em_evals.content.question_set import Turn
from em_evals.errors import EmEvalsError

PLAIN = "plain"
"""The name of the question without a cue."""
OVERALL = "overall"
"""The name of the mean over all cues that are no placebos."""
NO_SYSTEM = "\ue0f3 no system message"
"""A system message that stands for none at all: em-evals' chat templates then leave out their own default one too."""


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["user", "assistant"]
    content: str = Field(min_length=1)


class _Cue(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    system: str | None = None
    remove_system: bool = False
    prefix: str = ""
    suffix: str = ""
    context: list[_Turn] = []
    prefill: str = ""
    placebo: bool = False

    @model_validator(mode="after")
    def _changes(self) -> _Cue:
        if self.name == PLAIN:
            raise ValueError(f"'{PLAIN}' is the question without a cue; choose another name")
        if self.name == OVERALL:
            raise ValueError(f"'{OVERALL}' is the mean over all cues; choose another name")
        if self.remove_system and self.system:
            raise ValueError("`remove_system` and `system` exclude each other")
        changes = (self.system, self.remove_system, self.prefix, self.suffix, self.context, self.prefill)
        if not any(changes):
            raise ValueError(
                "a cue changes something: write `system`, `remove_system`, `prefix`, `suffix`, `context` or `prefill`"
            )
        roles = [turn.role for turn in self.context]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            raise ValueError("`context` holds pairs of a user's and an assistant's message")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    version: int = Field(ge=1)
    description: str = ""
    cues: list[dict[str, object]] = Field(min_length=1)


@dataclass(frozen=True)
class Cue:
    """One change of a prompt. `system` is NO_SYSTEM where the chat template's own message is removed."""

    name: str
    system: str | None = None
    prefix: str = ""
    suffix: str = ""
    context: tuple[Turn, ...] = ()
    prefill: str = ""
    placebo: bool = False

    def chat(self, asked: str | Sequence[Turn]) -> list[Turn]:
        """Return the chat that asks a question under this cue; a prefill is its last, unfinished turn.

        Args:
            asked: the question, or a chat that ends with it.

        Raises:
            EmEvalsError: both the chat and the cue have a system message.
        """
        turns = [Turn("user", asked)] if isinstance(asked, str) else list(asked)
        own = [turns.pop(0)] if turns[0].role == "system" else []
        if own and self.system:
            raise EmEvalsError(
                f"the question has a system message, and so has the cue '{self.name}': leave one out, or put the cue "
                "into a prefix."
            )
        head = [Turn("system", self.system)] if self.system else own
        last = [Turn("assistant", self.prefill)] if self.prefill else []
        asking = Turn("user", f"{self.prefix}{turns[-1].content}{self.suffix}")
        return [*head, *self.context, *turns[:-1], asking, *last]


@dataclass(frozen=True)
class CueSet:
    """A named set of cues."""

    name: str
    digest: str
    cues: tuple[Cue, ...]
    path: Path | None = field(default=None, compare=False)


def cue_set(name: str, cues: Sequence[Cue], path: Path | None = None) -> CueSet:
    """Return a set of cues with its digest."""
    return CueSet(name, files.digest(*(repr(cue) for cue in cues)), tuple(cues), path)


def load_cues(name: str = "evaluation") -> CueSet:
    """Load a cue set by name (tasks/cues/NAME.yaml) or path.

    Raises:
        EmEvalsError: it does not exist or is invalid, with file and line.
    """
    document = documents.load(documents.find("tasks/cues", name))
    file = documents.validate(_File, document)
    cues: list[Cue] = []
    for index, row in enumerate(file.cues):
        at: documents.KeyPath = ("cues", index)
        one = documents.validate(_Cue, document, row, at)
        if one.name in {cue.name for cue in cues}:
            raise document.error(f"the name '{one.name}' is taken by another cue; rename one.", at)
        turns = tuple(Turn(turn.role, turn.content) for turn in one.context)
        system = NO_SYSTEM if one.remove_system else one.system
        cues.append(Cue(one.name, system, one.prefix, one.suffix, turns, one.prefill, one.placebo))
    return cue_set(file.name, cues, document.path)
