"""JSON that `em-evals gate --json` and `em-evals insight phase --json` print, as far as the report reads it.

Keys that are not named here are let through: those commands may learn to say more.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from em_evals.results.records import Interval


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


VerdictName = Literal["pass", "regression", "invalid", "inconclusive"]


class GateMetric(_Part):
    """One metric's comparison; differences are candidate minus baseline."""

    metric: str
    unit: str = ""
    guard: bool = False
    baseline: float | None
    candidate: float | None
    difference: float | None
    interval: Interval
    verdict: VerdictName
    sentence: str = ""


class Verdict(_Part):
    """What the gate said."""

    verdict: VerdictName
    sentence: str
    baseline: str
    candidate: str
    metrics: tuple[GateMetric, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Point(_Part):
    """A value at a training step."""

    step: int
    value: float | None
    interval: Interval


class Transition(_Part):
    """Where a curve had gone half its way; no step where its end cannot be told from 0."""

    final: float | None
    final_interval: Interval
    step: float | None
    interval: Interval | None
    pairs: int


class Rotation(_Part):
    """How one rank-1 adapter's B turned: cosines to its last step, and of its path before and after each step."""

    module: str
    steps: tuple[int, ...]
    to_final: tuple[float | None, ...]
    local: tuple[float | None, ...]


class Trajectory(_Part):
    """A training over its steps."""

    card: str
    journal: tuple[dict[str, float | None], ...]
    shifts: dict[str, tuple[Point, ...]]
    transitions: dict[str, Transition]
    rotations: tuple[Rotation, ...]
    em_rates: tuple[Point, ...] = ()
