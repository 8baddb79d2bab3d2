"""Grades by rubrics other than alignment and coherence: shares of TRUE and of labels, and means of scales."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from em_evals import files
from em_evals.results.logs import number
from em_evals.stats import intervals
from em_evals.stats.bootstrap import StudentizedMean

if TYPE_CHECKING:
    from inspect_ai.scorer import Score


@dataclass(frozen=True)
class Other:
    """What a rubric other than alignment and coherence says of graded draws.

    Attributes:
        kind: `binary` (TRUE or FALSE, or a label or not, as 1 or 0) or `scale`.
        grades: of each question, without the draws that have none.
        scale: the lowest and the highest grade of a scale.
    """

    kind: str
    grades: dict[str, list[float]]
    scale: tuple[float, float] = (0.0, 100.0)

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """(TRUE, draws) of each question."""
        return {name: (sum(v >= 0.5 for v in values), len(values)) for name, values in self.grades.items()}

    @property
    def bounds(self) -> tuple[float, float]:
        """The ends of the scale."""
        return (0.0, 1.0) if self.kind == "binary" else self.scale

    @property
    def means(self) -> dict[str, float]:
        """Of each question's grades."""
        return {name: sum(values) / len(values) for name, values in self.grades.items()}


def others(graded: Iterable[tuple[str, Score]]) -> dict[str, Other]:
    """Collect grades by other rubrics than alignment and coherence, from (question, our judge's Score).

    A label is one share for each: `NAME_LABEL` is 1 where it is the judge's verdict. Answers that the question set
    drops count for the judge that they are dropped by only.
    """
    found: dict[str, Other] = {}
    verdicts: dict[str, list[tuple[str, str]]] = {}
    words: dict[str, dict[str, None]] = {}
    for question, score in graded:
        value = score.value if isinstance(score.value, dict) else {}
        notes: dict[str, Any] = score.metadata or {}
        own, by = notes.get("kinds"), notes.get("dropped")
        for name, kind in (own if isinstance(own, dict) else {}).items():
            if name in ("alignment", "coherence") or (by and name not in by):
                continue
            if kind in ("labels", "text"):
                said = (notes.get("grades") or {}).get(name) or {}
                if said.get("category") == "answer":
                    verdicts.setdefault(name, []).append((question, str(said.get("label"))))
                    words.setdefault(name, {}).update(dict.fromkeys(said.get("labels") or {}))
            elif not math.isnan(grade := number(value.get(name))):
                low, high = (notes.get("scales") or {}).get(name, (0.0, 100.0))
                other = found.setdefault(name, Other(kind, {}, (float(low), float(high))))
                other.grades.setdefault(question, []).append(grade)
    for name, said_of in verdicts.items():
        for word in words[name]:
            shares: dict[str, list[float]] = {}
            for question, label in said_of:
                shares.setdefault(question, []).append(float(label == word))
            found[f"{name}_{word}"] = Other("binary", shares)
    return found


def summary(other: Other) -> tuple[float, intervals.Interval]:
    """Return a rubric's share of TRUE with Wilson's interval, or its questions' mean with bootstrap-t on the scale."""
    if other.kind == "binary":
        counts = other.counts.values()
        events, draws = sum(k for k, _ in counts), sum(n for _, n in counts)
        return events / draws if draws else math.nan, intervals.fixed_questions(events, draws)
    means = StudentizedMean.of(list(other.means.values()), other.bounds)
    return means.mean, means.interval((1 - intervals.CONFIDENCE) / 2)


def as_json(other: Other) -> dict[str, Any]:
    """Return a rubric's value with its interval."""
    value, interval = summary(other)
    nulled: dict[str, Any] = files.without_nan(
        {"kind": other.kind, "questions": len(other.grades), "value": value, "interval": interval}
    )
    return nulled
