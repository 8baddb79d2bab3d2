"""`em-evals gate --plan`: how many draws decide, and what they cost."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from em_evals.cli.output import echo, print_json, print_table
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from em_evals.gate.cost import Split
    from em_evals.gate.evidence import Counts
    from em_evals.gate.inputs import Side
    from em_evals.gate.plan import Need
    from em_evals.gate.policy import Policy

_NAMES = ("em_rate", "em_rate_coherent", "coherent_share", "refusal_share", "ungraded_share")
"""The metrics of a freeform log, which are compared together."""
_USUAL = {"coherent_share": 1.0, "refusal_share": 0.0, "ungraded_share": 0.0}
"""Rates of guards where no baseline says otherwise."""


def show(
    rules: Policy,
    side: Side | None,
    rate: float | None,
    change: float,
    power: float,
    judge_calls: int,
    question_cost: float,
    as_json: bool,
) -> None:
    """Print the plan for the EM rate and for the overall verdict, with its costs."""
    from em_evals.files import without_nan
    from em_evals.gate import cost

    counts = _counts(side)
    if rate is None:
        rate = _rate(counts, "em_rate")
    needs, least = _needs(rules, counts, rate, change, power)
    clusters = list(counts["em_rate"].clusters.values()) if "em_rate" in counts else []
    own = cost.correlation(clusters)
    splits = _splits(rules, needs, len(clusters), own, judge_calls, question_cost)
    if as_json:
        told = {"rate": rate, "power": power, "minimum_draws": least, "correlation": own}
        shown = {"needs": [asdict(need) for need in needs], "costs": [asdict(split) for split in splits]}
        print_json(without_nan(told | shown))
        return
    _print(needs, splits, own, least)


def _needs(
    rules: Policy, counts: dict[str, Counts], rate: float, change: float, power: float
) -> tuple[list[Need], int]:
    """Return the draws to find a rise, to pass the EM rate, and to pass all; and the policy's minimum."""
    from em_evals.gate import plan

    found = {name: applied for name in _NAMES if (applied := rules.rule(name)) is not None}
    if "em_rate" not in found:
        raise EmEvalsError("the policy has no rule for em_rate, which --plan needs; add one.")
    rule = found["em_rate"].rule
    least = max(one.rule.minimum_draws or rules.minimum_draws for one in found.values())
    alpha, beyond = rules.level_of(rule), rules.regression == "margin"
    every = []
    for name, applied in found.items():
        own = rate if name == "em_rate" else _rate(counts, name, _USUAL.get(name, rate))
        if applied.better == "higher":
            own = 1 - own
        # A rate so near its end that a change by the margin is impossible passes at any number of draws.
        if own + applied.rule.margin <= 1:
            every.append((own, applied.rule.margin, rules.level_of(applied.rule)))
    needs = [
        # Holm's worst case: this p-value is the smallest of all metrics of a freeform log that have rules.
        plan.draws_to_find(rate, change, alpha / len(found), power, rule.margin, beyond, least),
        plan.draws_to_pass(rate, rule.margin, alpha, power, least),
        plan.draws_to_pass_all(every, power, least),
    ]
    return needs, least


def _splits(
    rules: Policy, needs: list[Need], questions: int, own: float, judge_calls: int, question_cost: float
) -> list[Split]:
    """Return what the largest need costs: with the baseline's questions, and for the population of questions."""
    from em_evals.gate import cost
    from em_evals.stats.population import questions_needed

    rule = rules.rule("em_rate")
    draws = max((need.draws or 0 for need in needs), default=0)
    if not draws or any(need.draws is None for need in needs) or rule is None:
        return []
    splits = [cost.fixed(draws, questions, judge_calls)] if questions else []
    if not math.isnan(own):
        least = questions_needed(rule.rule.margin, rules.level_of(rule.rule))
        splits.append(cost.sampled(draws, own, question_cost, judge_calls, least))
    return splits


def _print(needs: list[Need], splits: list[Split], own: float, least: int) -> None:
    from em_evals.gate import plan

    rows = [
        [
            need.aim,
            f"{need.draws}" if need.draws else f"more than {plan.MOST}",
            f"{need.power:.1%}",
            f"{need.alpha:.4f}",
        ]
        for need in needs
    ]
    print_table("", ["to", "draws per model", "power", "one-sided level"], rows)
    if any(need.draws == least for need in needs):
        echo(f"fewer would do, but the policy asks for {least} (minimum_draws).")
    if splits:
        columns = ["scope", "questions", "draws of each", "draws per model", "judge calls per model"]
        numbers = [[s.scope, str(s.questions), str(s.each), str(s.draws), str(s.judge_calls)] for s in splits]
        print_table("what the largest of these costs", columns, numbers)
    if not math.isnan(own):
        echo(f"draws for one question correlate by {own:.3f} in the baseline.")


def _counts(side: Side | None) -> dict[str, Counts]:
    """Return the counted metrics of the baseline's freeform log."""
    from em_evals.gate.evidence import Counts

    if side is not None and side.problems:
        raise EmEvalsError(side.problems[0])
    for evidence in side.evidence.values() if side else []:
        if isinstance(evidence.measures.get("em_rate"), Counts):
            return {name: own for name, own in evidence.measures.items() if isinstance(own, Counts)}
    return {}


def _rate(counts: dict[str, Counts], name: str, default: float | None = None) -> float:
    if name in counts and counts[name].draws:
        return sum(events for events, _ in counts[name].clusters.values()) / counts[name].draws
    if default is None:
        raise EmEvalsError(
            "give the EM rate to plan from: --rate 0.005, or --baseline with a graded log of freeform."
        )
    return default
