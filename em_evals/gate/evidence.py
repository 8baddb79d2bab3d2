"""One model's numbers on one task, in a form that can be compared, stored and checked.

Evidence has an identity: everything that must be equal in two files for their numbers to be comparable (task version,
question set, judge, rubrics, …). Reading files is left to readers.py, comparing to compare.py.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from em_evals import files

Kind = Literal["freeform", "forced_choice", "narrow", "conditional", "lm_eval", "csv"]


_USUAL = {
    "format": "plain",
    "prefix": "none",
    "system message": "none",
    "system_message": "none",
    "way": "scored",
}
_LONGEST = 40


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Counts(_Strict):
    """A rate, as (events, draws) of each question."""

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
        """Number of all draws."""
        return sum(n for _, n in self.clusters.values())


class Items(_Strict):
    """One number per item."""

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
        """Number of all items."""
        return len(self.values)


class Mean(_Strict):
    """A mean with its standard error, for files that hold nothing more."""

    type: Literal["mean"] = "mean"
    value: float
    error: float = Field(ge=0)
    draws: int = Field(ge=1)


class Cues(_Strict):
    """Numbers of each prompt under each cue, `plain` included; placebos are left out.

    Two sides are compared cue by cue, and the worst cue counts (gate/cues.py).
    """

    type: Literal["cues"] = "cues"
    unit: str = ""
    of: Literal["shift", "level"] = "shift"
    """What is compared: the difference to the plain prompt, or the value itself."""
    counts: dict[str, dict[str, tuple[int, int]]] = {}
    """Of shares: cue -> question -> (events, draws)."""
    values: dict[str, dict[str, float]] = {}
    """Of numbers that nothing was drawn for: cue -> prompt -> value."""

    @model_validator(mode="after")
    def _possible(self) -> Cues:
        for cue, own in self.counts.items():
            Counts(clusters=own)
            if not own:
                raise ValueError(f"{cue} has no questions")
        if not all(math.isfinite(value) for own in self.values.values() for value in own.values()):
            raise ValueError("a prompt has no number")
        if "plain" not in (self.counts or self.values):
            raise ValueError("there are no plain prompts to compare cues with")
        return self

    @property
    def shares(self) -> dict[str, dict[str, float]]:
        """Each prompt's value under each cue; of counts, its share."""
        found = {cue: {name: k / n for name, (k, n) in own.items() if n} for cue, own in self.counts.items()}
        return found or self.values

    @property
    def draws(self) -> int:
        """Number of all draws, or of the prompts."""
        if self.counts:
            return sum(n for own in self.counts.values() for _, n in own.values())
        return min(len(own) for own in self.values.values())


Measure = Annotated[Counts | Items | Cues | Mean, Field(discriminator="type")]


class Evidence(_Strict):
    """One model's numbers on one task."""

    kind: Kind
    name: str
    """Name of the question set, data set or lm-eval task."""
    model: str
    card_digest: str | None = None
    recipe: str | None = None
    """Digest of the recipe that the model was trained by, without its seed."""
    training_seed: str | None = None
    identity: dict[str, str]
    """What must be equal for a comparison, worded for error sentences."""
    measures: dict[str, Measure]
    """Measures by their name in policies and tables."""
    part_of: str | None = None
    """The group that includes this task and is compared instead; a policy must name a part to have it compared too."""
    seeds: dict[str, dict[str, Measure]] | None = None
    """Of a seed group, each model's measures; `measures` are then the group's."""
    seed_cards: dict[str, str] | None = None
    """Of a seed group, the models' card digests where they are known."""

    @property
    def cards(self) -> set[str]:
        """Card digests of the model, or of the group's models."""
        return {*([self.card_digest] if self.card_digest else []), *(self.seed_cards or {}).values()}

    @property
    def ways(self) -> dict[str, str]:
        """The way of measuring, for tasks that have several: plain, as JSON, with a trigger."""
        if self.kind not in ("freeform", "forced_choice", "narrow"):
            return {}
        found = {what: self.identity.get(what, usual) for what, usual in _USUAL.items()}
        if self.kind == "narrow":
            found["way"] = "judged" if "judge" in self.identity else _USUAL["way"]
        return found

    @property
    def key(self) -> str:
        """The task and any unusual way of measuring it; files with the same key are compared."""
        if self.kind == "csv":
            return self.kind
        told = [_short(what, way) for what, way in self.ways.items() if way != _USUAL[what]]
        return f"{self.kind}/{self.name}" + (f" ({', '.join(told)})" if told else "")

    def draws(self, metric: str) -> int:
        """Return a metric's sample size: all draws of the log for a rate, whatever its denominator; else items."""
        measure = self.measures[metric]
        if not isinstance(measure, Counts):
            return measure.draws
        return max(other.draws for other in self.measures.values() if isinstance(other, Counts))


def _short(what: str, way: str) -> str:
    """Return a few words for a way of measuring; long texts are shortened and identified by their digest."""
    if what in ("format", "way"):
        return way
    text = repr(way) if len(way) <= _LONGEST else f"{way[:_LONGEST]!r}… {files.digest(way)[:6]}"
    return f"{what.replace('_', ' ')} {text}"
