"""Logs of `em_evals/conditional`: shares of each question's draws, plainly and under each cue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from em_evals.content.cues import PLAIN, Cue
from em_evals.errors import EmEvalsError
from em_evals.results import logs
from em_evals.results.graded_draw import DROPPED, GradedDraw
from em_evals.results.records.conditional import Cells

EVENTS: dict[str, Callable[[GradedDraw], bool]] = {
    "em_rate": lambda draw: draw.misaligned_coherent,
    "coherent_share": lambda draw: draw.coherent,
    "refusal_share": lambda draw: draw.category == "refusal",
    "ungraded_share": lambda draw: draw.ungraded,
}
"""Shares of all draws. The others tell selection from effect: a cue that makes answers incoherent, or lets the model
refuse, lowers the EM rate without a better model."""

Counts = dict[str, dict[str, tuple[int, int]]]
"""Cue (`plain` included) -> question -> (events, draws)."""


@dataclass(frozen=True)
class ConditionalLog:
    """One model's graded draws under cues.

    Attributes:
        path: the log.
        model: its model.
        asked: the question set.
        cue_set: name of the cue set.
        cues: its cues, as far as the log tells: names, and which are placebos.
        counts: share -> counts.
        identity: what must be equal in two logs for a comparison.
        cards: digests of the model's card.
    """

    path: Path
    model: str
    asked: str
    cue_set: str
    cues: tuple[Cue, ...]
    counts: dict[str, Counts]
    identity: dict[str, str]
    cards: tuple[str, ...] = ()

    def cells(self, share: str) -> Cells:
        """Return a share of each question's draws under each cue, as records hold it."""
        counts = self.counts[share]
        return Cells(
            values={cue: {name: k / n for name, (k, n) in own.items()} for cue, own in counts.items()},
            draws={cue: {name: n for name, (_, n) in own.items()} for cue, own in counts.items()},
            card=", ".join(self.cards),
        )


def read(path: Path) -> ConditionalLog:
    """Read a log of `em_evals/conditional`.

    Raises:
        EmEvalsError: it is not of `em_evals/conditional`, not graded, or unfinished.
    """
    log = logs.read_log(path)
    samples = log.samples or []
    if not samples or not all(isinstance(sample.metadata.get("cue"), str) for sample in samples):
        raise EmEvalsError("this is no log of `em_evals/conditional`: its answers name no cue.", path)
    draws = logs.draws_of_log(log)
    if all(draw.ungraded for draw in draws):
        raise EmEvalsError("none of its draws was graded: grade them with `inspect score`.", path)
    cues: dict[str, Cue] = {}
    counted: dict[tuple[str, str], list[GradedDraw]] = {}
    for sample, draw in zip(samples, draws, strict=True):
        name = sample.metadata["cue"]
        cues.setdefault(name, Cue(name, placebo=bool(sample.metadata.get("placebo"))))
        if draw.category != DROPPED:
            counted.setdefault((name, draw.question_id), []).append(draw)
    counts: dict[str, Counts] = {share: {} for share in EVENTS}
    for (name, question), own in counted.items():
        for share, event in EVENTS.items():
            counts[share].setdefault(name, {})[question] = sum(map(event, own)), len(own)
    facts, header = logs.facts(log), log.eval.metadata or {}
    identity = {
        "task version": facts.version,
        "question set": f"{facts.asked} {facts.asked_digest}",
        "cues": str(header.get("cues_digest") or ", ".join(sorted(cues))),
        **logs.sampling(log),
        **logs.grading(facts),
    }
    return ConditionalLog(
        path,
        facts.model,
        facts.asked,
        str(header.get("cues") or ""),
        tuple(cue for name, cue in cues.items() if name != PLAIN),
        counts,
        identity,
        facts.cards,
    )


def same_way(first: ConditionalLog, other: ConditionalLog) -> None:
    """Check that two logs can be compared.

    Raises:
        EmEvalsError: they differ in questions, cues, sampling, judge or rubrics.
    """
    for what, own in first.identity.items():
        told = other.identity.get(what, "nothing")
        if own != told:
            raise EmEvalsError(
                f"not the same {what} as in {first.path.name} ({told[:60]} against {own[:60]}): measure both the same "
                "way.",
                other.path,
            )
