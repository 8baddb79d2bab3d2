"""The record of `em-evals gate`: a verdict and the numbers behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator

from em_evals.results.records.base import Record

Verdict = Literal["pass", "regression", "invalid", "inconclusive"]


Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float; NaN is null in the file."""


@dataclass(frozen=True)
class WorstQuestion:
    """The question whose rate changed most for the worse."""

    question: str
    difference: Number
    interval: tuple[Number, Number]
    """Simultaneous over all questions, at the row's alpha."""


@dataclass(frozen=True)
class GateMetric:
    """One metric's comparison.

    Differences are candidate − baseline in the metric's unit; p-values are one-sided.
    """

    metric: str
    title: str
    """Name in tables and sentences: the metric, with its source if several logs have it."""
    source: str
    """Key of the evidence (`freeform/core`)."""
    guard: bool
    worse: Literal["higher", "lower"]
    unit: str
    margin: float
    alpha: float
    """One-sided level of the intervals, which are those that rates, retention and report show: 0.025 for 95%."""
    baseline: Number
    candidate: Number
    difference: Number
    interval: tuple[Number, Number]
    """In the policy's scope; each end is a bound at one-sided alpha."""
    random_questions: tuple[Number, Number]
    """For other questions of this kind."""
    effect: Number
    effect_name: str
    units: tuple[int, int]
    p_worse: Number
    """p-value of no harm (d ≤ 0, or d ≤ margin); small values indicate a regression."""
    p_worse_adjusted: Number
    p_within: Number
    """p-value of harm beyond the margin (d ≥ margin); small values indicate a pass."""
    verdict: Verdict
    sentence: str = ""
    level: float = 0.0
    """One-sided level of this look's tests: the part of alpha that it spends."""
    scope: Literal["questions", "population"] = "questions"
    """What the verdict is about: these questions, or all questions of their kind."""
    questions: int | None = None
    """Number of questions, for rates of draws."""
    worst: WorstQuestion | None = None
    seeds: dict[str, Number] | None = None
    """Difference of each seed of the candidate, where a side is a seed group; the interval is over seeds too."""
    carried_by: str | None = None
    """The seed without which less than half of the difference is left."""
    against: Literal["baseline", "anchor"] = "baseline"
    """What the candidate is compared with: the last accepted model, or the first one."""


@dataclass(frozen=True)
class Look:
    """One judgment of a candidate's numbers."""

    number: int
    """1 for the first look at this candidate."""
    candidate: list[str]
    """What identifies it: digests of cards, or names of models."""
    evidence: str
    """Digest of both sides' numbers: the same numbers again are the same look."""
    draws: tuple[int, int]
    """Draws and items of baseline and candidate."""
    verdict: Verdict = "inconclusive"


class GateVerdict(Record):
    """The gate's verdict."""

    kind: Literal["gate"] = "gate"
    version: Literal[1] = 1
    verdict: Verdict
    exit_code: int
    sentence: str
    baseline: str
    """Names of this side's models."""
    candidate: str
    metrics: list[GateMetric]
    problems: list[str]
    notes: list[str]
    looks: list[Look] = []
    """All looks at candidates that were judged with this record, this one last."""
    provenance: dict[str, str] = {}
