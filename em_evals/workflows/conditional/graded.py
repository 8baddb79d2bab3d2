"""Graded answers under cues: logs of `em_evals/conditional`, as shares of each question's draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from em_evals.content.cues import Cue
from em_evals.errors import EmEvalsError
from em_evals.results import logs
from em_evals.results.em_rates import DROPPED, GradedDraw

METRICS: dict[str, Callable[[GradedDraw], bool]] = {
    "em_rate": lambda draw: draw.misaligned_coherent,
    "coherent_share": lambda draw: draw.coherent,
    "refusal_share": lambda draw: draw.category == "refusal",
}
"""Shares of all draws. The second and third tell selection from effect: a cue that makes answers incoherent, or lets
the model refuse, lowers the EM rate without a better model."""


def measured(path: Path) -> tuple[str, list[Cue], dict[str, dict[str, dict[str, float]]]]:
    """Return a log's model, its cues, and metric -> cue -> question -> share.

    Raises:
        EmEvalsError: the log is not of `em_evals/conditional`, or not graded.
    """
    log = logs.read_log(path)
    draws = logs.draws_of_log(log)
    cues: dict[str, Cue] = {}
    counted: dict[tuple[str, str], list[GradedDraw]] = {}
    for sample, draw in zip(log.samples or [], draws, strict=True):
        name = sample.metadata.get("cue")
        if not isinstance(name, str):
            raise EmEvalsError("this is no log of `em_evals/conditional`: its answers name no cue.", path)
        cues.setdefault(name, Cue(name, placebo=bool(sample.metadata.get("placebo"))))
        if draw.category != DROPPED:
            counted.setdefault((name, draw.question_id), []).append(draw)
    found: dict[str, dict[str, dict[str, float]]] = {metric: {} for metric in METRICS}
    for (name, question), own in counted.items():
        for metric, counts in METRICS.items():
            share = sum(map(counts, own)) / len(own)
            found[metric].setdefault(name, {})[question] = share
    return logs.named(log.eval.model), [cue for name, cue in cues.items() if name != "plain"], found
