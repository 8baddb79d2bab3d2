"""What a file says about one model on one task, in a form that can be compared, kept and checked.

Evidence has an identity: everything that must be equal in two files for their numbers to be comparable (task version,
question set, judge, rubrics, …). Reading files is readers.py's, comparing is compare.py's.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["freeform", "forced_choice", "narrow", "lm_eval", "csv"]


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
    def key(self) -> str:
        """What this is evidence about; two files with one key can be compared."""
        return self.kind if self.kind == "csv" else f"{self.kind}/{self.name}"

    def draws(self, metric: str) -> int:
        """What was asked for a metric: all draws of the log for a rate, whatever it is a rate of; else items."""
        measure = self.measures[metric]
        if not isinstance(measure, Counts):
            return measure.draws
        return max(other.draws for other in self.measures.values() if isinstance(other, Counts))
