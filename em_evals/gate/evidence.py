"""What a file says about one model on one task, in a form that can be compared, kept and checked.

Evidence has an identity: everything that must be equal in two files for their numbers to be comparable (task version,
question set, judge, rubrics, …). Reading files is readers.py's, comparing is compare.py's.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from em_evals import files

Kind = Literal["freeform", "forced_choice", "narrow", "lm_eval", "csv"]


_USUAL = {
    "format": "plain",
    "prefix": "none",
    "system message": "none",
    "system_message": "none",
    "way": "weighed",
}
_LONGEST = 40


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Counts(_Strict):
    """A rate: (events, draws) of each question."""

    type: Literal["counts"] = "counts"
    clusters: dict[str, tuple[int, int]]

    @model_validator(mode="after")
    def _possible(self) -> Counts:
        for question, (events, draws) in self.clusters.items():
            if not 0 <= events <= draws:
                raise ValueError(f"{question} has {events} events in {draws} draws")
        return self

    @property
    def draws(self) -> int:
        """All draws."""
        return sum(n for _, n in self.clusters.values())


class Items(_Strict):
    """One number for each item."""

    type: Literal["items"] = "items"
    unit: str = ""
    values: dict[str, float]

    @model_validator(mode="after")
    def _numbers(self) -> Items:
        for item, value in self.values.items():
            if not math.isfinite(value):
                raise ValueError(f"{item} has no number")
        return self

    @property
    def draws(self) -> int:
        """All items."""
        return len(self.values)


class Mean(_Strict):
    """A mean with its standard error, where no more is known."""

    type: Literal["mean"] = "mean"
    value: float
    error: float = Field(ge=0)
    draws: int = Field(ge=1)


Measure = Annotated[Counts | Items | Mean, Field(discriminator="type")]


class Evidence(_Strict):
    """One task's numbers for one model."""

    kind: Kind
    name: str
    """The question set's, data set's or lm-eval task's name."""
    model: str
    card_digest: str | None = None
    identity: dict[str, str]
    """What must be equal for a comparison, in words that a sentence can use."""
    measures: dict[str, Measure]
    """By the name that policies and tables use."""
    part_of: str | None = None
    """What sums this up and is compared instead; a policy has to name a part to have it compared by itself."""

    @property
    def ways(self) -> dict[str, str]:
        """How it was measured, where one model is measured in several ways: plain, as JSON, with a trigger."""
        if self.kind not in ("freeform", "forced_choice", "narrow"):
            return {}
        found = {what: self.identity.get(what, usual) for what, usual in _USUAL.items()}
        if self.kind == "narrow":
            found["way"] = "judged" if "judge" in self.identity else _USUAL["way"]
        return found

    @property
    def key(self) -> str:
        """What this is evidence about, and in which way if not the usual one; files with one key can be compared."""
        if self.kind == "csv":
            return self.kind
        told = [_short(what, way) for what, way in self.ways.items() if way != _USUAL[what]]
        return f"{self.kind}/{self.name}" + (f" ({', '.join(told)})" if told else "")

    def draws(self, metric: str) -> int:
        """What was asked for a metric: all draws of the log for a rate, whatever it is a rate of; else items."""
        measure = self.measures[metric]
        if not isinstance(measure, Counts):
            return measure.draws
        return max(other.draws for other in self.measures.values() if isinstance(other, Counts))


def _short(what: str, way: str) -> str:
    """A way in a key's few words; long texts are told apart by their digest."""
    if what in ("format", "way"):
        return way
    text = repr(way) if len(way) <= _LONGEST else f"{way[:_LONGEST]!r}… {files.digest(way.encode())[:6]}"
    return f"{what.replace('_', ' ')} {text}"
