"""Seed groups: models of one recipe that differ by their training seed, judged as one (`--group NAME=a,b,c`).

A group's evidence holds each seed's numbers, and their sum (counts) or mean (items) as the group's own. The interval
over seeds is left to stats/crossed.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from em_evals.errors import EmEvalsError
from em_evals.gate import words
from em_evals.gate.evidence import Counts, Cues, Evidence, Items, Mean, Measure
from em_evals.results import seed_groups
from em_evals.results.seed_groups import Groups, parse
from em_evals.stats.crossed import CrossedMean, Table, difference
from em_evals.stats.rates import RateContrast

__all__ = ["Groups", "member", "merged", "over_seeds", "parse"]


def member(evidence: Evidence, groups: Groups) -> tuple[str, str] | None:
    """Return (group, model as listed) of evidence; None if no group lists its model."""
    return seed_groups.member(evidence.model, groups)


def merged(group: str, listed: Sequence[str], seeds: Mapping[str, Evidence]) -> Evidence:
    """Return the evidence of a group on one task.

    Args:
        group: its name.
        listed: its models.
        seeds: each model's evidence, by the name in the list.

    Raises:
        EmEvalsError: a model has no evidence, two are the same model, or they were measured in different ways.
    """
    first = next(iter(seeds.values()))
    cards = {model: own.card_digest for model, own in seeds.items() if own.card_digest}
    made = {model: (own.recipe or "", own.training_seed or "") for model, own in seeds.items()}
    try:
        seed_groups.complete(group, listed, {model: own.cards for model, own in seeds.items()}, made)
    except EmEvalsError as error:
        raise EmEvalsError(f"{first.key}: {error.what}") from None
    for model, own in seeds.items():
        if differing := words.differing(first.key, first.identity, own.identity):
            raise EmEvalsError(f"group {group}, {model}: {differing[0]}")
    shared = [name for name in first.measures if all(name in own.measures for own in seeds.values())]
    measures = {name: _pooled([own.measures[name] for own in seeds.values()]) for name in shared}
    kept = {name: measure for name, measure in measures.items() if measure is not None}
    each = {model: {name: own.measures[name] for name in kept} for model, own in seeds.items()}
    one = {"model": group, "card_digest": None, "training_seed": None, "seed_cards": cards or None}
    return first.model_copy(update={**one, "measures": kept, "seeds": each})


def found(
    several: Mapping[str, Sequence[Evidence]],
) -> tuple[dict[tuple[str, str], dict[str, Evidence]], dict[str, list[str]], list[str]]:
    """Return the seed groups among evidence of the same tasks whose models state one recipe and different seeds.

    Args:
        several: evidence of each task that more than one model has.

    Returns:
        (group, task) -> evidence by model; the groups; and a note on each.
    """
    seeds: dict[tuple[str, str], dict[str, Evidence]] = {}
    listed: dict[str, list[str]] = {}
    for key, every in several.items():
        made = {
            own.model: seed_groups.Made(own.recipe or "", own.training_seed or "", own.cards) for own in every
        }
        own_groups, _ = seed_groups.by_recipe(made)
        if len(own_groups) == 1 and len(made) == len(every) and set(*own_groups.values()) == made.keys():
            [(group, names)] = own_groups.items()
            seeds[group, key] = {own.model: own for own in every}
            listed[group] = list(dict.fromkeys([*listed.get(group, []), *names]))
    return seeds, listed, [seed_groups.told(group, names) for group, names in listed.items()]


def over_seeds(before: Evidence, after: Evidence, metric: str, items_vary: bool) -> CrossedMean | None:
    """Return a metric's difference over items and seeds; None if neither side is a group.

    Args:
        before: the accepted model or group.
        after: the candidate.
        metric: a metric that both have.
        items_vary: whether the questions of a rate are a sample; pairs and other items always are.
    """
    if before.seeds is None and after.seeds is None:
        return None
    sides = [_by_item(side, metric) for side in (before, after)]
    shared = [item for item in sides[0][0] if all(item in own for side in sides for own in side)]
    if not shared:
        return None
    tables: list[Table] = [np.array([[own[item] for own in side] for item in shared]) for side in sides]
    rates = before.measures[metric], after.measures[metric]
    noise = 0.0, 0.0
    if isinstance(rates[0], Counts) and isinstance(rates[1], Counts):
        noise = RateContrast(rates[0].clusters, rates[1].clusters).variances
    return difference(tables[0], tables[1], items_vary or isinstance(rates[0], Items), noise)


def _by_item(side: Evidence, metric: str) -> list[dict[str, float]]:
    """Return each seed's value of each item: a question's rate, or an item's number."""
    measures = [side.measures[metric]] if side.seeds is None else [own[metric] for own in side.seeds.values()]
    return [_values(measure) for measure in measures]


def _values(measure: Measure) -> dict[str, float]:
    if isinstance(measure, Counts):
        return {name: events / draws for name, (events, draws) in measure.clusters.items() if draws}
    return dict(measure.values) if isinstance(measure, Items) else {}


def _pooled(measures: Sequence[Measure]) -> Measure | None:
    """Return the sum of counts, or the mean of items that all have; None for bare means, which cannot be paired."""
    first = measures[0]
    if isinstance(first, Counts):
        sides = [own.clusters for own in measures if isinstance(own, Counts)]
        names = dict.fromkeys(name for own in sides for name in own)
        return Counts(
            clusters={
                name: (
                    sum(own.get(name, (0, 0))[0] for own in sides),
                    sum(own.get(name, (0, 0))[1] for own in sides),
                )
                for name in names
            }
        )
    if isinstance(first, Mean):
        return None
    if isinstance(first, Cues):
        return _pooled_cues(first, [own for own in measures if isinstance(own, Cues)])
    values = [own.values for own in measures if isinstance(own, Items)]
    shared = [item for item in first.values if all(item in own for own in values)]
    return Items(
        unit=first.unit, values={item: sum(own[item] for own in values) / len(values) for item in shared}
    )


def _pooled_cues(first: Cues, seeds: Sequence[Cues]) -> Cues:
    """Return the sum of counts, or the mean of numbers, of each prompt that all seeds have, under each cue."""
    counts: dict[str, dict[str, tuple[int, int]]] = {}
    values: dict[str, dict[str, float]] = {}
    for cue, own in first.shares.items():
        shared = [name for name in own if all(name in one.shares.get(cue, {}) for one in seeds)]
        if first.counts:
            pairs = {name: [one.counts[cue][name] for one in seeds] for name in shared}
            counts[cue] = {name: (sum(k for k, _ in kn), sum(n for _, n in kn)) for name, kn in pairs.items()}
        else:
            values[cue] = {name: sum(one.values[cue][name] for one in seeds) / len(seeds) for name in shared}
    return first.model_copy(update={"counts": counts, "values": values})
