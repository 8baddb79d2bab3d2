"""The comparison of one log's metrics: a row for each, without its verdict, which compare.py decides over all rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from typing import Any, Literal

from em_evals.gate import cues, groups, words
from em_evals.gate.evidence import Counts, Cues, Evidence, Items, Mean, Measure
from em_evals.gate.policy import Applied, Policy, not_a_share
from em_evals.results.graded_draw import base_question
from em_evals.results.records.gate import GateMetric, WorstQuestion
from em_evals.stats.crossed import CrossedMean
from em_evals.stats.means import Contrast, MeanContrast
from em_evals.stats.paired import PairedContrast
from em_evals.stats.population import RandomSlopes, RareHarm, Unseen
from em_evals.stats.rates import RateContrast
from em_evals.stats.strictest import Strictest
from em_evals.stats.worst import Worst

Worse = Literal["higher", "lower"]
"""Which direction is harm."""


@dataclass
class Comparison:
    """What one judgment compares under, and the problems and notes that it collects.

    Attributes:
        policy: the rules.
        look: the number of this look at the candidate.
        problems: sentences that make the input unusable.
        notes: sentences that do not.
    """

    policy: Policy
    look: int
    problems: list[str]
    notes: list[str]


def contrast(
    before: Measure, after: Measure, worse: Worse = "higher", population: bool = False
) -> Contrast | None:
    """Return the contrast of two measures; None if they differ in form (one file has items, the other only a mean).

    Args:
        before: the accepted model's numbers.
        after: the candidate's.
        worse: which direction is harm.
        population: whether the questions are a sample of those that the verdict is about (see stats/population.py).
    """
    if isinstance(before, Counts) and isinstance(after, Counts):
        rates = RateContrast(before.clusters, after.clusters)
        if not population:
            return rates
        wide = RateContrast(_base(before), _base(after))
        return Strictest(rates, [RandomSlopes(wide), RareHarm([*wide.by_question.values()], worse)])
    if isinstance(before, Items) and isinstance(after, Items):
        # Nats that happen to be 0 or 1 are no right and wrong answers.
        pairs = PairedContrast(before.values, after.values, binary=False if before.unit else None)
        return (
            Strictest(pairs, [Unseen(pairs.items, worse)])
            if population and not pairs.right_or_wrong
            else pairs
        )
    if isinstance(before, Mean) and isinstance(after, Mean):
        return MeanContrast(
            before.value, after.value, (before.error, after.error), (before.draws, after.draws)
        )
    return None


def compared(before: Evidence, after: Evidence, one: Comparison, several: Set[str]) -> Iterator[GateMetric]:
    """Yield a row for each metric of one log that both sides have and the policy has a rule for.

    Args:
        before: the accepted model's log.
        after: the candidate's.
        one: the policy and the look; it collects problems and notes.
        several: metrics that more than one log has; their titles name the log.
    """
    if both := before.cards & after.cards:
        word = "are" if before.card_digest and after.card_digest else "share"
        one.notes.append(
            f"{before.key}: baseline and candidate {word} the same model (card digest {min(both)})."
        )
    if not before.measures and not after.measures:
        one.notes.append(
            f"{before.key} was not compared: it has neither items whose scores are numbers nor a standard error."
        )
    elif before.measures == after.measures:
        one.notes.append(
            f"{before.key}: both sides hold the same numbers; if that is one file given twice, nothing was compared."
        )
    if before.kind == "csv":
        one.notes.append(
            "a CSV names neither judge nor rubric: that both were graded the same way is taken on trust."
        )
    for name, measure in before.measures.items():
        found = one.policy.rule(name) if before.part_of is None else one.policy.named(name)
        if found is None:
            one.notes.append(f"the policy has no rule for {name}; it was not compared.")
            continue
        other = after.measures.get(name)
        drawn = _drawn(measure, before)
        population = one.policy.scope == "population" and (drawn or not isinstance(measure, Counts))
        worse: Worse = "higher" if found.better == "lower" else "lower"
        difference = _difference(before, after, name, worse, population)
        if difference is None or other is None:
            one.problems.append(
                f"{before.key}: {name} is not given in the same form on both sides; log samples for both."
            )
            continue
        if wrong := not_a_share(name, found.rule, _unit(measure) == "share"):
            one.problems.append(f"the policy: {wrong[1]}")
            continue
        needed = found.rule.minimum_draws or (one.policy.minimum_draws if drawn else one.policy.minimum_items)
        if few := words.too_few(before.key, name, (before.draws(name), after.draws(name)), needed, drawn):
            one.problems.append(few)
            continue
        over_seeds = None if isinstance(measure, Cues) else groups.over_seeds(before, after, name, population)
        if over_seeds is not None:
            difference = Strictest(difference, [over_seeds])
        title = f"{name} of {before.key}" if name in several else name
        if isinstance(difference, Worst):
            title += f" ({difference.name})"
        row = _row(before.key, name, title, difference, found, one, _unit(measure))
        row = replace(row, **_questions(measure, other, row)) if drawn else row
        yield row if over_seeds is None else replace(row, **_seeds(after, over_seeds))


def _drawn(measure: Measure, before: Evidence) -> bool:
    """Return whether a measure counts draws."""
    if isinstance(measure, Cues):
        return bool(measure.counts)
    return isinstance(measure, Counts) and before.kind != "lm_eval"


def _difference(
    before: Evidence, after: Evidence, name: str, worse: Worse, population: bool
) -> Contrast | None:
    """Return a metric's contrast; None if the sides have it in different forms, or the candidate lacks it."""
    measure, other = before.measures[name], after.measures.get(name)
    if other is None:
        return None
    if isinstance(measure, Cues):
        return cues.contrast(before, after, name, worse, population)
    return contrast(measure, other, worse, population)


def _seeds(after: Evidence, over_seeds: CrossedMean) -> dict[str, Any]:
    """Return the fields of a row that are about single seeds of the candidate."""
    names = [*(after.seeds or {after.model: {}})]
    carried = over_seeds.carried_by
    return {
        "seeds": dict(zip(names, over_seeds.seeds, strict=True)),
        "carried_by": None if carried is None else names[carried],
    }


def _questions(measure: Measure, other: Measure, row: GateMetric) -> dict[str, Any]:
    """Return the fields of a row that are about single questions."""
    if not (isinstance(measure, Counts) and isinstance(other, Counts)):
        return {}
    rates = RateContrast(measure.clusters, other.clusters)
    base = _base(measure)
    wide = rates if base == measure.clusters else RateContrast(base, _base(other))
    worst = rates.worst(row.alpha, 1 if row.worse == "higher" else -1)
    (low, high), (own_low, own_high) = wide.random_questions(row.alpha), row.interval
    return {
        "questions": len(wide.by_question),
        "worst": worst and WorstQuestion(*worst),
        "random_questions": (min(low, own_low), max(high, own_high)),
    }


def _base(counts: Counts) -> dict[str, tuple[int, int]]:
    """Return the counts by base question: the formats of one question are no independent questions."""
    merged: dict[str, tuple[int, int]] = {}
    for question, (events, draws) in counts.clusters.items():
        name = base_question(question)
        before = merged.get(name, (0, 0))
        merged[name] = (before[0] + events, before[1] + draws)
    return merged


def _unit(measure: Measure) -> str:
    """Return the measure's unit; a mean from a results file can be of anything, so it has none."""
    if isinstance(measure, Counts):
        return "share"
    return measure.unit if isinstance(measure, Items | Cues) else ""


def _row(
    source: str, name: str, title: str, difference: Contrast, found: Applied, one: Comparison, unit: str
) -> GateMetric:
    """Return a row; its verdict is `invalid` beyond the policy's limits and otherwise still open."""
    rule = found.rule
    worse: Worse = "higher" if found.better == "lower" else "lower"
    alpha = one.policy.alpha_of(rule)
    harm = rule.margin if one.policy.regression == "margin" else 0.0
    if worse == "higher":
        p_worse, p_within = difference.p_above(harm), difference.p_below(rule.margin)
    else:
        p_worse, p_within = difference.p_below(-harm), difference.p_above(-rule.margin)
    beyond = words.beyond(title, difference.candidate, rule, unit)
    return GateMetric(
        metric=name,
        title=title,
        source=source,
        guard=found.guard,
        worse=worse,
        unit=unit,
        margin=rule.margin,
        alpha=alpha,
        baseline=difference.baseline,
        candidate=difference.candidate,
        difference=difference.estimate,
        interval=difference.interval(alpha),
        random_questions=difference.random_questions(alpha),
        effect=difference.effect,
        effect_name=difference.effect_name,
        units=difference.units,
        p_worse=p_worse,
        p_worse_adjusted=math.nan,
        p_within=p_within,
        verdict="invalid" if beyond else "inconclusive",
        sentence=beyond,
        level=one.policy.level_of(rule, one.look),
        scope=one.policy.scope,
    )
