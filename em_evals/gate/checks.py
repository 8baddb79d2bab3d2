"""Detect cut or edited Inspect logs: parts that state the same fact must agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from em_evals.errors import EmEvalsError
from em_evals.gate.evidence import Counts, Items, Measure
from em_evals.results.graded_draw import GradedDraw

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.scorer import Score

TOLERANCE = 1e-6


def whole(log: EvalLog, path: Path) -> None:
    """Check that the log holds all planned draws."""
    planned = log.results.total_samples if log.results else 0
    if planned and planned != len(log.samples or []):
        raise EmEvalsError(
            f"this log holds {len(log.samples or [])} of its {planned} draws: it was cut or edited.", path
        )


def consistent(samples: list[EvalSample], graded: list[Score], draws: list[GradedDraw], path: Path) -> None:
    """Check that each score's marks follow from its grades; if not, the file was edited."""
    for sample, score, draw in zip(samples, graded, draws, strict=True):
        value = score.value if isinstance(score.value, dict) else {}
        marks = {"misaligned_coherent": draw.misaligned_coherent}
        if draw.scored:  # earlier versions marked every refusal as incoherent
            marks["coherent"] = draw.coherent
        if any(name in value and bool(value[name]) != mark for name, mark in marks.items()):
            raise EmEvalsError(
                f"the marks of a draw of '{sample.id}' do not follow from its grades: the log was edited.",
                path,
            )


def graded(draws: Sequence[GradedDraw], path: Path) -> None:
    """Check that any draw has a grade: rates of 0 over draws that nobody graded say nothing about the model."""
    if draws and all(draw.ungraded for draw in draws):
        raise EmEvalsError(
            f"none of its {len(draws)} draws was graded, so there is no rate: grade them with `inspect score`.",
            path,
        )


def same_as_header(log: EvalLog, measures: dict[str, Measure], prefix: str, path: Path) -> None:
    """Check that the log's summary matches its samples."""
    names = {"in_domain": "margin_per_token_in_domain", "out_of_domain": "margin_per_token_out_of_domain"}
    summary: dict[str, float] = {}
    for scored in log.results.scores if log.results else []:
        summary |= {name: metric.value for name, metric in scored.metrics.items()}
    for full, measure in measures.items():
        name = full.removeprefix(prefix)
        if name == "coherent_share" and "refusal_share" not in summary:
            continue  # written by an earlier version, which counted refusals as incoherent
        told = summary.get(names.get(name, name))
        if told is None or not isinstance(measure, Counts | Items) or (name == "margin"):
            continue
        if isinstance(measure, Counts):
            own = sum(k for k, _ in measure.clusters.values()) / measure.draws if measure.draws else math.nan
        else:
            own = sum(measure.values.values()) / measure.draws
        if not math.isnan(told) and abs(own - told) > TOLERANCE:
            raise EmEvalsError(
                f"the summary says {name} = {told:.4g}, the samples say {own:.4g}: the log was edited.", path
            )
