"""The record of `em-evals gate`: a verdict and the numbers behind it."""

from __future__ import annotations

from typing import Literal

from em_evals.results.records.base import Interval, Record

Verdict = Literal["pass", "regression", "invalid", "inconclusive"]


class GateMetric(Record):
    """One metric's comparison, as gate/compare.py's `Row`; differences are candidate - baseline."""

    metric: str
    title: str
    source: str
    guard: bool
    worse: Literal["higher", "lower"]
    unit: str
    margin: float
    alpha: float
    baseline: float | None
    candidate: float | None
    difference: float | None
    interval: Interval
    random_questions: Interval
    effect: float | None
    effect_name: str
    units: tuple[int, int]
    p_worse: float | None
    p_worse_adjusted: float | None
    p_within: float | None
    verdict: Verdict
    sentence: str


class GateVerdict(Record):
    """What the gate said."""

    kind: Literal["gate"] = "gate"
    version: Literal[1] = 1
    verdict: Verdict
    exit_code: int
    sentence: str
    baseline: str
    """The models of this side."""
    candidate: str
    metrics: list[GateMetric]
    problems: list[str]
    notes: list[str]
    provenance: dict[str, str] = {}
