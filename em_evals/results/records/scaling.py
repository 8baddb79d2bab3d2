"""The record of `em-evals insight scaling`."""

from __future__ import annotations

from typing import Literal

from em_evals.results.records.base import Interval, Record


class ScalingSlope(Record):
    """A change of the EM rate's logit per tenfold of a predictor."""

    value: float
    interval: Interval
    p: float


class ScalingPredictor(Record):
    """One predictor alone; see `stats.scaling.Predictor`."""

    name: str
    bases: int
    least_squares: ScalingSlope
    mixed: ScalingSlope | None
    within_family: ScalingSlope | None
    without: dict[str, float | None]
    without_family: dict[str, float | None]


class ScalingBase(Record):
    """A base in the comparison."""

    name: str
    family: str
    parameters: float
    tokens: float | None
    distilled: bool
    organisms: int
    misaligned: int
    draws: int
    interval: Interval
    """95% interval of its pooled rate: for these draws, not for other bases."""


class Scaling(Record):
    """EM rate against parameters, training tokens and parameters per token, over bases."""

    kind: Literal["scaling"] = "scaling"
    version: Literal[1] = 1
    table: str
    bases: list[ScalingBase]
    families: int
    runs: int
    sources: list[str]
    left_out: list[str]
    predictors: list[ScalingPredictor]
    vif: float | None
    """Of log P and log T within families; null where one does not vary apart from the other."""
    tokens_given_size: ScalingSlope | None
    partial: dict[str, ScalingSlope]
    """log P and log T in one model within families."""
    kept: list[str]
    """Predictors that Holm's test keeps; empty where the design identifies none."""
    reasons: list[str]
    """Why no cause is named."""
    distilled: tuple[float, float] | None
    """Mean logit of distilled bases minus the others', and its permutation p."""
    would_settle: list[str]
    """Families with public checkpoints of their pretraining: P fixed, T growing."""
    conclusion: list[str]
    """The result in sentences."""
    provenance: dict[str, str] = {}
