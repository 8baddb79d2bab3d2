"""The record of `em-evals data screen`: a file of training data beside a reference set."""

from __future__ import annotations

from typing import Literal

from em_evals.results.records.base import Measured, Record
from em_evals.results.records.claims import Claim


class ScreenedRow(Record):
    """One of the rows with the largest projection difference; texts are cut."""

    rank: int
    line: int
    difference: float
    prompt: str
    answer: str


class Screening(Record):
    """Projection differences of a file's rows on a direction (arXiv 2507.21509, section 6)."""

    kind: Literal["screening"] = "screening"
    version: Literal[1] = 1
    file: str
    direction: str
    layer: int
    exact: bool
    """Minus the model's own answer, instead of the last prompt token."""
    rows: int
    skipped: int
    mean: Measured
    correlation_with_length: float | None
    reference_rows: int = 0
    against_reference: Measured | None = None
    """Mean minus the reference's."""
    claim: Claim | None = None
    """The AUROC against the reference beside that of null directions."""
    alone: dict[str, float] = {}
    """AUROC of length, language and topic without a model."""
    edges: list[float]
    """Of the histogram's bins, one more than counts."""
    counts: list[int]
    reference_counts: list[int] = []
    top: list[ScreenedRow] = []
    provenance: dict[str, str] = {}
