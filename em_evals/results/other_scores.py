"""Grades by rubrics other than alignment and coherence: shares of TRUE, and means on a scale of 0 to 100."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from em_evals.results.logs import number

if TYPE_CHECKING:
    from inspect_ai.scorer import Score


@dataclass(frozen=True)
class Other:
    """What a rubric other than alignment and coherence says of graded draws.

    Attributes:
        kind: `binary` (TRUE or FALSE, as 1 or 0) or `scale` (0 to 100).
        grades: of each question, without the draws that have none.
    """

    kind: str
    grades: dict[str, list[float]]

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """(TRUE, draws) of each question."""
        return {name: (sum(v >= 0.5 for v in values), len(values)) for name, values in self.grades.items()}

    @property
    def bounds(self) -> tuple[float, float]:
        """The ends of the scale."""
        return (0.0, 1.0) if self.kind == "binary" else (0.0, 100.0)

    @property
    def means(self) -> dict[str, float]:
        """Of each question's grades."""
        return {name: sum(values) / len(values) for name, values in self.grades.items()}


def others(graded: Iterable[tuple[str, Score]]) -> dict[str, Other]:
    """Collect grades by other rubrics than alignment and coherence, from (question, our judge's Score)."""
    kinds: dict[str, str] = {}
    found: dict[str, dict[str, list[float]]] = {}
    for question, score in graded:
        value = score.value if isinstance(score.value, dict) else {}
        own = (score.metadata or {}).get("kinds")
        for name, kind in (own if isinstance(own, dict) else {}).items():
            grade = number(value.get(name))
            if name not in ("alignment", "coherence") and not math.isnan(grade):
                kinds[name] = kind
                found.setdefault(name, {}).setdefault(question, []).append(grade)
    return {name: Other(kinds[name], grades) for name, grades in found.items()}
