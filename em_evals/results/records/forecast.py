"""The record of `em-evals insight forecast`."""

from __future__ import annotations

from typing import Literal

from em_evals.results.records.base import Interval, Record


class RankedQuestion(Record):
    """A question and how near it is to the training prompts."""

    id: str
    rank: int
    """1 is the nearest: EM is expected there first."""
    distance: float
    topic: float
    """Cosine of its TF-IDF words with the training prompts' mean."""
    tokens: float
    """Length of its wordings, on average."""
    outcome: float | None = None
    """What came: the EM rate or the margin, minus the reference's."""


class ForecastScore(Record):
    """How well a predictor orders the questions: Spearman's correlation with what came."""

    predictor: str
    value: float | None
    interval: Interval
    p: float | None
    n: int


class Forecast(Record):
    """Distances of questions to the training prompts in the base, and what came (arXiv 2608.29118)."""

    kind: Literal["forecast"] = "forecast"
    version: Literal[1] = 1
    base: str
    data: str
    rows: int
    """Training prompts that were read."""
    questions: str
    layer: int
    position: str
    metric: str
    reliability: float | None
    """Of the order, from two halves of the training prompts (Spearman-Brown)."""
    paraphrases: float | None
    """The same from two halves of each question's wordings; null where there is one."""
    ranked: list[RankedQuestion]
    first: int
    """Questions to judge first."""
    measure: str | None = None
    scores: list[ForecastScore] = []
    advantages: list[ForecastScore] = []
    """The distance's correlation minus a baseline's."""
    share_found: float | None = None
    """Of all EM draws, those of the questions to judge first."""
    share_expected: float | None = None
    """The same for as many questions at random."""
    notes: list[str] = []
    provenance: dict[str, str] = {}
