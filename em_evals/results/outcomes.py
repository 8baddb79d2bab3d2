"""What came of each question in logs: the share of misaligned draws, or the margin of a scored pair."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from em_evals.errors import EmEvalsError
from em_evals.results import em_rates, folders, logs, tables

Measure = Literal["EM rate", "margin"]


@dataclass(frozen=True)
class Outcomes:
    """Means over files, by question.

    Attributes:
        measure: `EM rate` (misaligned and coherent among all draws), or `margin` (nats per token toward the misaligned
            answer).
        values: question or pair id -> value.
        events: question -> EM draws of all files; empty for margins.
    """

    measure: Measure
    values: dict[str, float]
    events: dict[str, int]

    def minus(self, other: Outcomes) -> Outcomes:
        """Return the differences on the questions of both.

        Raises:
            EmEvalsError: they measure different things.
        """
        if self.measure != other.measure:
            raise EmEvalsError(f"the logs have a {self.measure} and the reference's a {other.measure}.")
        shared = {
            name: value - other.values[name] for name, value in self.values.items() if name in other.values
        }
        return Outcomes(self.measure, shared, self.events)


def read(paths: Iterable[Path]) -> Outcomes:
    """Read graded draws or scored pairs; each file counts alike (seeds of one recipe).

    Raises:
        EmEvalsError: a file is neither, or some are the one and some the other.
    """
    values: dict[str, list[float]] = {}
    events: dict[str, int] = {}
    measures: dict[Measure, Path] = {}
    for found in folders.walk(paths):
        if found.finished or (not found.named and folders.is_other_json(found.path)):
            continue
        measure, own, counted = _of(found.path)
        measures.setdefault(measure, found.path)
        for name, value in own.items():
            values.setdefault(name, []).append(value)
        for name, count in counted.items():
            events[name] = events.get(name, 0) + count
    if not measures:
        raise EmEvalsError("there are no logs here.")
    if len(measures) > 1:
        raise EmEvalsError(
            "this is a log of scored pairs, and others hold graded answers.", measures["margin"]
        )
    return Outcomes(next(iter(measures)), {name: float(np.mean(own)) for name, own in values.items()}, events)


def _of(path: Path) -> tuple[Measure, dict[str, float], dict[str, int]]:
    """Return one file's measure, values and events."""
    if path.suffix.lower() not in tables.SUFFIXES:
        log = logs.read_log(path)
        if any("likelier" in (sample.scores or {}) for sample in log.samples or []):
            margins = {name: value for name, (_, value) in logs.margins_of_log(log).items() if value == value}
            return "margin", margins, {}
    counts = em_rates.clusters(logs.read_draws(path), "em_rate", base=True)
    rates = {name: events / draws for name, (events, draws) in counts.items() if draws}
    return "EM rate", rates, {name: events for name, (events, _) in counts.items()}
