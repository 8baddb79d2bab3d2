"""Measurements of one log or CSV (`Measured`): sampled answers with their grades, or scored pairs.

Reads files through results/logs.py; computes nothing. Texts of models and files are kept verbatim: escaping is left
to page.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_evals.content import cards, documents
from em_evals.content.cues import PLAIN
from em_evals.errors import EmEvalsError
from em_evals.results import logs, sources, thoughts
from em_evals.results.em_rates import SHARES
from em_evals.results.graded_draw import OUTCOMES, GradedDraw
from em_evals.results.logs import Facts
from em_evals.results.sources import Source
from em_evals.results.thoughts import GradedThought

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample

STATES = ("misaligned", "between", *OUTCOMES[1:], "ungraded")
"""States of an answer: a draw's outcome, or `ungraded` where no judge was asked. `aligned` here means aligned by the
rubric, from its `aligned_from` on; `between` are the other coherent answers that are not misaligned."""

AS_ASKED = ("prefix", "system message")
"""Facts that also occur in prompts: shown verbatim, like the prompts themselves."""

_GRADES = ("alignment", "coherence")
"""The rubrics behind EM rates; other rubrics may differ between files."""
_ABSOLUTE = re.compile(r"(?<![\w:/.])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"/\\,;()]+[/\\])+")


def without_folders(text: str) -> str:
    """Return a text with absolute paths reduced to file names, so that a page does not reveal the machine."""
    return _ABSOLUTE.sub("", text)


@dataclass(frozen=True)
class Answer:
    """One draw, as shown to a reader. `thought`: with its thought's grade, where thoughts were graded."""

    theme: str
    prompt: str
    text: str
    draw: GradedDraw
    state: str
    thought: GradedThought | None = None


@dataclass(frozen=True)
class ScoredPair:
    """One scored forced-choice pair under one model."""

    theme: str
    narrow: bool
    margin: float
    """Margin toward the misaligned answer, in nats per token."""


@dataclass(frozen=True)
class Measured:
    """One file: a model's answers, or its scored pairs.

    Attributes:
        label: the model's name on the page, with how it was asked where that differs; unique.
        model: the model's name alone.
        file: the file's name, without its folder.
        asked: name of the question set, data set or pairs.
        facts: where the numbers come from, for the provenance table.
        answers: sampled answers, in the file's order.
        pairs: scored pairs by id.
        other: the log's further metrics (such as the share of TRUE in a deception set), with intervals.
        identity: what must be equal in two files for a comparison, if the file records it: `question set` (its digest,
            since equal names and ids can have different texts), `judge` and `rubrics`.
        base: the base of its card, empty if unknown.
        changed: whether an adapter or interventions make it another model than its base.
    """

    label: str
    file: str
    task: str
    asked: str
    facts: dict[str, str]
    model: str = ""
    base: str = ""
    changed: bool = True
    answers: tuple[Answer, ...] = ()
    pairs: dict[str, ScoredPair] = field(default_factory=dict)
    other: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    identity: dict[str, str] = field(default_factory=dict)

    @property
    def graded(self) -> bool:
        """Whether any answer has a grade."""
        return any(not answer.draw.ungraded for answer in self.answers)

    @property
    def draws(self) -> list[GradedDraw]:
        """The answers' grades."""
        return [answer.draw for answer in self.answers]

    @property
    def thoughts(self) -> list[GradedThought]:
        """The answers whose thoughts were to be graded, with these grades."""
        return [answer.thought for answer in self.answers if answer.thought is not None]


def of_table(path: Path) -> list[Measured]:
    """Read a judged table, one entry for each model or arm in it; answers are shown if it has their columns."""
    source = sources.of_file(path)
    return [_of_part(part, path) for part in sources.split(source, None)]


def _of_part(part: Source, path: Path) -> Measured:
    label = ", ".join(part.part.values()) or path.stem
    empty = [""] * len(part.draws)

    def texts(*names: str) -> Sequence[str]:
        return next((part.columns[name] for name in names if name in part.columns), empty)

    rows = zip(part.draws, texts("theme"), texts("question"), texts("answer", "response"), strict=True)
    answers = tuple(
        Answer(theme, question or draw.question_id, answer, draw, _state(draw))
        for draw, theme, question, answer in rows
    )
    facts = {"what": "judged table", **dict(part.part), "draws": str(len(answers))}
    return Measured(label, path.name, "csv", path.stem, facts, label, answers=answers)


_TASKS = ("freeform", "forced_choice", "narrow", "conditional")


class OtherTaskError(EmEvalsError):
    """A log of a task that the report does not show."""


def of_log(path: Path) -> list[Measured]:
    """Read an Inspect log; of `conditional`, one entry for each cue.

    Raises:
        OtherTaskError: a log of a task that the report does not show.
        EmEvalsError: unreadable, unfinished, or with failed draws.
    """
    log = logs.read_log(path)
    told = logs.facts(log)
    if told.task not in _TASKS:
        raise OtherTaskError(
            f"this is a log of '{log.eval.task}'; the report shows {', '.join(_TASKS)}.", path
        )
    samples = log.samples or []
    if not samples:
        raise EmEvalsError("there are no draws in this file.", path)
    scored = any("likelier" in (sample.scores or {}) for sample in samples)
    label = told.model.removeprefix("local/")
    shown = _shown(log, told, scored)
    base, changed = _base_of(told)
    found = Measured(
        label, path.name, told.task, told.asked, shown, label, base, changed, identity=_identity(told)
    )
    if scored:
        themes = {str(sample.id): str(sample.metadata.get("theme") or told.asked) for sample in samples}
        pairs = {
            pair: ScoredPair(themes[pair], narrow, value)
            for pair, (narrow, value) in logs.margins_of_log(log).items()
            if not math.isnan(value)
        }
        return [replace(found, pairs=pairs)]
    found = replace(found, answers=tuple(_answer(sample) for sample in samples), other=_other(log))
    cues = [str(sample.metadata.get("cue") or PLAIN) for sample in samples]
    return [found] if set(cues) == {PLAIN} else list(_by_cue(found, cues))


def _by_cue(found: Measured, cues: Sequence[str]) -> Iterator[Measured]:
    """Yield the answers under each cue as a measurement of its own; the log's summary is over all of them."""
    for cue in dict.fromkeys(cues):
        answers = tuple(answer for answer, own in zip(found.answers, cues, strict=True) if own == cue)
        facts = {**found.facts, "cue": cue, "draws": str(len(answers))}
        label = found.label if cue == PLAIN else f"{found.label} · {cue}"
        yield replace(found, label=label, facts=facts, answers=answers, other={})


def _base_of(told: Facts) -> tuple[str, bool]:
    """Return a model's base and whether it differs from it: as its log records, else as its card here says."""
    if told.base:
        return told.base, told.changed
    name = told.model.removeprefix("local/")
    if name not in documents.names("adapters"):
        return "", True
    try:
        card, _ = cards.read_card(name)
    except EmEvalsError:  # a broken card of that name says nothing about the log
        return "", True
    return card.base, card.adapter is not None or bool(card.interventions)


def _answer(sample: EvalSample) -> Answer:
    notes = sample.metadata
    question = str(notes.get("question_id") or sample.id)
    score = logs.judged(sample)
    draw = logs.graded_draw(question, score) if score else GradedDraw(question, math.nan, math.nan)
    state = _state(draw) if score else "ungraded"
    thought = thoughts.of_score(draw, score) if score else None
    return Answer(
        str(notes.get("theme") or ""), _prompt(sample), sample.output.completion, draw, state, thought
    )


def _prompt(sample: EvalSample) -> str:
    if isinstance(sample.input, str):
        return sample.input
    texts = [
        message.text if message.role == "user" else f"[{message.role}] {message.text}"
        for message in sample.input
    ]
    return "\n\n".join(texts)


def _state(draw: GradedDraw) -> str:
    return "between" if draw.outcome == "aligned" and not draw.aligned_coherent else draw.outcome


def _shown(log: EvalLog, told: Facts, scored: bool) -> dict[str, str]:
    """Return the facts of a log for the provenance table; empty texts where it records nothing."""
    shown = {
        "what": f"{told.task}, version {told.version}",
        "model": told.model,
        "base": told.base,
        "card": _joined(told.cards),
        "recipe": told.recipe,
        "training seed": told.training_seed,
        "verified": _joined(told.verified),
        "questions": f"{told.asked} {told.asked_digest}".strip(),
        "format": told.format,
        "prefix": _quoted(told.prefix),
        "system message": _quoted(told.system_message, told.system),
        "judge": _joined(told.judges),
        "way of grading": _joined(told.ways),
        "rubrics": _joined(told.rubrics),
        "pairs" if scored else "draws": str(len(log.samples or [])),
        "sampling": "" if scored else _sampling(log),
        "date": told.date,
        "versions": _joined(f"{name} {version}" for name, version in told.packages.items()),
        "commit": told.commit,
    }
    return {name: text if name in AS_ASKED else without_folders(text) for name, text in shown.items()}


def _identity(told: Facts) -> dict[str, str]:
    found = {
        "question set": told.asked_digest,
        "judge": without_folders(_joined(told.judges)),
        "rubrics": _joined(text for text in told.rubrics if text.partition(" ")[0] in _GRADES),
    }
    return {what: text for what, text in found.items() if text}


def _sampling(log: EvalLog) -> str:
    """Return the sampling settings as text."""
    return _joined(
        f"{name} {value:g}"
        for own in logs.drawn(log)
        for name in ("temperature", "top_p", "top_k", "max_tokens")
        if isinstance(value := own.get(name), int | float)
    )


def _quoted(*texts: Any) -> str:
    """Return texts in quotation marks, which reveal trailing spaces; empty for empty texts."""
    return ", ".join(json.dumps(str(text), ensure_ascii=False) for text in texts if text)


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(sorted({text for text in texts if text}))


def _other(log: EvalLog) -> dict[str, tuple[float, float, float]]:
    """Return metrics that are not EM rates and have an interval."""
    found = {}
    for score in log.results.scores if log.results else []:
        values = {name: metric.value for name, metric in score.metrics.items()}
        for name, value in values.items():
            ends = values.get(f"{name}_low"), values.get(f"{name}_high")
            if name not in SHARES and None not in ends:
                found[name] = (float(value), float(ends[0] or 0), float(ends[1] or 0))
    return found
