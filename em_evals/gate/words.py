"""The gate's sentences. Numbers come from compare.py; nothing is decided here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from em_evals import shown
from em_evals.gate.evidence import Evidence
from em_evals.stats import population, spending

if TYPE_CHECKING:
    from em_evals.gate.policy import Rule
    from em_evals.results.records.gate import GateMetric, Look, Verdict

_REMEDIES = {
    "judge": "grade both with the same judge (`inspect score`)",
    "way of grading": "grade both the same way (`inspect score`)",
    "rubrics": "grade both by the same rubrics (`inspect score`)",
    "thresholds": "grade both by the same rubrics (`inspect score`)",
    "task version": "measure both with the same version of the task",
    "question set": "ask both the same questions",
    "questions asked": "ask both the same questions",
    "pairs scored": "score the same pairs with both",
}
_CAUSES = {
    "refusal_share": "refused questions say nothing about alignment",
    "ungraded_share": "draws without a grade are not evidence of safety",
}
"""Guard -> why the other metrics cannot be read if it fails; for all others, incoherence."""
_LONGEST = 60


def differing(key: str, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return one sentence per property that should be equal and is not."""
    return [
        f"{key}: not the same {what} (baseline {_short(before.get(what))}, candidate {_short(after.get(what))}): "
        f"{_REMEDIES.get(what, 'measure both the same way')}."
        for what in {**before, **after}
        if before.get(what) != after.get(what)
    ]


def too_few(key: str, name: str, units: tuple[int, int], needed: int, drawn: bool) -> str:
    """Return a sentence if a side has fewer draws (or items, which are not drawn) than needed, else an empty text."""
    one, todo = (
        ("draw", "draw more, or set minimum_draws") if drawn else ("item", "use more, or set minimum_items")
    )
    for who, count in zip(("baseline", "candidate"), units, strict=True):
        if count < needed:
            return (
                f"{key}: {name} has {count} {one if count == 1 else f'{one}s'} in the {who}, the policy asks for "
                f"{needed}: {todo}."
            )
    return ""


def row(row: GateMetric, regression: str) -> str:
    """Return the sentence of a metric's verdict."""
    size = amount(row.margin, row.unit)
    harm = f"a {'rise' if row.worse == 'higher' else 'fall'} of {size} or more"
    tested = f"{p_value(row.p_worse_adjusted)} after Holm"
    if row.verdict == "pass":
        real = row.p_worse_adjusted <= row.level and regression == "zero"
        small = "; the change for the worse is real but surely smaller" if real else ""
        return (
            f"{_change(row)}; {harm} is ruled out ({p_value(row.p_within)}){small}{_worst(row)}{_seeds(row)}."
        )
    if row.verdict == "regression":
        beyond = f"more than the margin of {size}" if regression == "margin" else "worse than the baseline"
        return f"{_change(row)}: {beyond} ({tested}), and {harm} is not ruled out{_worst(row)}{_seeds(row)}."
    return (
        f"{_change(row)}: no change for the worse is shown ({tested}), yet {harm} is not ruled out either; "
        f"{_more(row)}{_worst(row)}{_seeds(row)}."
    )


def _worst(row: GateMetric) -> str:
    """Return the worst question, if it changed for the worse beyond chance; it was chosen among all questions."""
    if row.worst is None or not (
        row.worst.interval[0] > 0 if row.worse == "higher" else row.worst.interval[1] < 0
    ):
        return ""
    return (
        f"; worst question: {row.worst.question} {amount(row.worst.difference, row.unit, '+')} "
        f"(simultaneous {confidence(row.alpha)} interval {bounds(*row.worst.interval, row.unit)})"
    )


def _seeds(row: GateMetric) -> str:
    """Return each seed's difference, and the seed that carries the whole."""
    if not row.seeds or len(row.seeds) < 2:
        return ""
    each = ", ".join(f"{name} {amount(value, row.unit, '+')}" for name, value in row.seeds.items())
    alone = f"; {row.carried_by} alone carries the change" if row.carried_by else ""
    return f"; by seed: {each}{alone}"


def can_miss(key: str, questions: int, alpha: float) -> str:
    """Return the sentence on what so many questions can miss, for a verdict about these questions."""
    asked = "this question" if questions == 1 else f"these {questions} questions"
    told = "it" if questions == 1 else "all of them"
    return (
        f"{key}: the verdict is about {asked}; harm that is confined to less than "
        f"{population.missed(questions, alpha):.0%} of the kinds of questions can be absent from {told} "
        "(`scope: population` tests that too)."
    )


def _several(row: GateMetric) -> bool:
    return row.seeds is not None and len(row.seeds) > 1


def _more(row: GateMetric) -> str:
    """Return what decides an open metric: without sampling, a repeat on the same items gives the same result."""
    if row.source.startswith("lm_eval/"):
        return "more seeds decide" if _several(row) else "more items decide"
    if row.scope == "population" and row.questions is not None and row.margin < 1:
        share, needed = (
            population.missed(row.questions, row.level),
            population.questions_needed(row.margin, row.level),
        )
        if row.questions < needed:
            return (
                f"{row.questions} questions can miss harm in {share:.1%} of the kinds of questions, and {needed} or "
                "more decide"
            )
    if _several(row):
        return "more seeds decide"
    if row.unit == "share":
        return "more draws decide (`em-evals gate --plan`)"
    return "more pairs decide" if row.unit else "more questions decide"


def further_look(look: Look, alpha: float, planned: int | None) -> str:
    """Return the sentence of a second or later look at a candidate."""
    level, so_far = (of(alpha, look.number, planned) for of in (spending.level, spending.spent))
    return (
        f"look {look.number} at this candidate: tests are at one-sided {level:.2g}; with this look {so_far:.3g} of "
        f"alpha = {alpha:g} is spent."
    )


def no_look_left(number: int, planned: int) -> str:
    """Return the sentence of a look beyond the plan."""
    return (
        f"this is look {number} at the candidate and the policy plans {planned} (`looks: {planned}`): alpha is spent; "
        "the earlier verdict stands."
    )


def beyond(name: str, value: float, rule: Rule, unit: str) -> str:
    """Return the sentence of a candidate below the policy's minimum or above its maximum, else an empty text."""
    limits = (("below", "minimum", rule.minimum, 1), ("above", "maximum", rule.maximum, -1))
    for side, kind, limit, sign in limits:
        if limit is not None and not sign * value >= sign * limit:
            found, most = level(value, unit), level(limit, unit)
            return f"{name} of the candidate is {found}, {side} the policy's {kind} of {most}."
    return ""


def unreadable(row: GateMetric, guard: GateMetric) -> str:
    """Return the sentence of a metric whose guard failed."""
    cause = _CAUSES.get(guard.metric.rpartition(".")[2], "incoherent answers are not evidence of safety")
    return (
        f"{_change(row)}, but this is not interpretable: {guard.title} went from {level(guard.baseline, guard.unit)} "
        f"to {level(guard.candidate, guard.unit)}; {cause}."
    )


def ungraded(row: GateMetric) -> str:
    """Return the sentence of a candidate with more ungraded draws: the judge failed, not the model."""
    return f"{_change(row)}: grades are missing, which says nothing about the model; grade the log again."


def unguarded(row: GateMetric, guard: GateMetric) -> str:
    """Return the sentence of a metric whose guard is inconclusive."""
    return f"{_change(row)}, which would pass, but its guard {guard.title} is inconclusive."


def overall(verdict: Verdict, rows: Sequence[GateMetric], problems: Sequence[str]) -> str:
    """Return the sentence of the overall verdict."""
    if problems:
        more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
        return f"invalid: {problems[0]}{more}"
    named = ", ".join(row.title for row in rows if row.verdict == verdict)
    if verdict == "regression":
        return f"regression: the candidate is worse than the baseline on {named}."
    if verdict == "invalid":
        invalid = sorted((row for row in rows if row.verdict == verdict), key=lambda row: not row.guard)
        return f"invalid: {invalid[0].sentence}"  # a failed guard is the reason of all others
    if verdict == "inconclusive":
        return f"inconclusive: neither harm nor its absence is shown on {named}."
    return f"pass: on {named} no harm beyond the margins."


def models(evidence: Iterable[Evidence]) -> str:
    """Return the names of a side's models."""
    return ", ".join(sorted({entry.model for entry in evidence})) or "nothing"


def level(value: float, unit: str) -> str:
    """Format a value; shares as percentages."""
    if math.isnan(value):
        return "–"
    return f"{value:.2%}" if unit == "share" else f"{value:+.3f}" if unit else f"{value:.3f}"


def amount(value: float, unit: str, sign: str = "") -> str:
    """Format a difference with its unit; shares in percentage points."""
    if math.isnan(value):
        return "–"
    return f"{value * 100:{sign}.2f} points" if unit == "share" else f"{value:{sign}.3f} {unit}".rstrip()


def change(value: float, unit: str) -> str:
    """Format a difference without its unit; shares in percentage points."""
    return "–" if math.isnan(value) else f"{value * 100:+.2f}" if unit == "share" else f"{value:+.3f}"


def bounds(low: float, high: float, unit: str) -> str:
    """Format an interval of differences."""
    if math.isnan(low):
        return "–"
    scale, digits = (100, 2) if unit == "share" else (1, 3)
    return f"[{low * scale:+.{digits}f}, {high * scale:+.{digits}f}]"


def p_value(p: float) -> str:
    """Format a p-value with two digits, as `p = 0.021`."""
    if math.isnan(p):
        return "p = –"
    return f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"


def confidence(alpha: float) -> str:
    """Format the level of a two-sided interval whose ends are bounds at one-sided alpha."""
    return f"{100 * (1 - 2 * alpha):.4g}%"


def _change(row: GateMetric) -> str:
    verb = "stayed at" if row.difference == 0 else "rose from" if row.difference > 0 else "fell from"
    start = level(row.baseline, row.unit)
    between = start if row.difference == 0 else f"{start} to {level(row.candidate, row.unit)}"
    interval = bounds(*row.interval, row.unit)
    return (
        f"{row.title} {verb} {between} ({amount(row.difference, row.unit, '+')}, {confidence(row.alpha)} interval "
        f"{interval})"
    )


def _short(text: str | None) -> str:
    return shown.cut(" ".join((text or "nothing").split()), _LONGEST)
