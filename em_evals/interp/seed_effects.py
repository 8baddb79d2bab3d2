"""Convergence over seeds: what a recipe's models show as one, and whether one seed carries it.

Three seeds are three models. Effects are means over pairs and seeds, crossed (stats/crossed.py); cosines of two groups
are means over both groups' seeds. Where directions of several seeds are ablated from models of several seeds, both
sides' seeds vary: the interval covers that over either side's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import NamedTuple

from em_evals.content import recipe_identity
from em_evals.content.cards import ResolvedCard
from em_evals.content.pairs import Pair
from em_evals.errors import EmEvalsError
from em_evals.results import seed_groups
from em_evals.results.records.base import Measured
from em_evals.results.records.studies import Cosines, SeedEffect
from em_evals.results.seed_groups import Groups, Made

Margins = Mapping[str, float]
"""Pair -> nats per token toward the misaligned answer."""
_DOMAINS = {True: "in-domain", False: "out-of-domain"}


class Scored(NamedTuple):
    """Margins of the base, of each organism, and of each (source, organism) with the source's direction ablated."""

    base: Margins
    plain: Mapping[str, Margins]
    ablated: Mapping[tuple[str, str], Margins]


def groups_of(cards: Sequence[ResolvedCard], named: Groups) -> tuple[dict[str, list[str]], list[str]]:
    """Return the named groups and those that the cards' training records form, and notes on the latter.

    Raises:
        EmEvalsError: two cards are one model, or a named group lists other cards, two recipes, or one seed twice.
    """
    made = {}
    for card in cards:
        trained = recipe_identity.of(card)
        own = ("", "") if trained is None else (trained.recipe, str(trained.seed))
        made[card.name] = Made(*own, [card.digest])
    if notes := seed_groups.same(made):
        raise EmEvalsError(f"{notes[0].rstrip('.')}: name it once.")
    for group, listed in named.items():
        own_digests = {name: made[name].digests for name in listed if name in made}
        recipes = {name: (made[name].recipe, made[name].seed) for name in own_digests}
        seed_groups.complete(group, listed, own_digests, recipes)
    rest = {name: one for name, one in made.items() if seed_groups.member(name, named) is None}
    found, notes = seed_groups.by_recipe(rest)
    notes += [seed_groups.told(group, names) for group, names in found.items()]
    return {group: list(names) for group, names in {**named, **found}.items()}, notes


def effects(
    groups: Groups, scored: Scored, cosines: Sequence[Cosines], pairs: Sequence[Pair]
) -> list[SeedEffect]:
    """Return each group's shift from the base, what ablating a group's directions changes, and cosines of groups."""
    found: list[SeedEffect] = []
    for (narrow, domain), (group, names) in product(_DOMAINS.items(), groups.items()):
        chosen = [pair.id for pair in pairs if pair.narrow == narrow]
        shifts = {name: _shift(scored.base, scored.plain[name], chosen) for name in names}
        found.append(_effect(group, f"{domain} margin minus the base's", [shifts]))
    for (narrow, domain), (source, others), (group, names) in product(
        _DOMAINS.items(), groups.items(), groups.items()
    ):
        chosen = [pair.id for pair in pairs if pair.narrow == narrow]
        each = {
            (other, name): _shift(scored.plain[name], scored.ablated[other, name], chosen)
            for other, name in product(others, names)
        }
        sides = [
            {name: _mean([each[other, name] for other in others]) for name in names},
            {other: _mean([each[other, name] for name in names]) for other in others},
        ]
        what = f"{domain} margin after ablating the directions of {source} minus before"
        found.append(_effect(group, what, sides))
    by_pair = {frozenset((one.one, one.other)): _over_layers(one) for one in cosines}
    for (one, own), (other, others) in combinations(groups.items(), 2):
        table = {name: {right: by_pair[frozenset((name, right))] for right in others} for name in own}
        found.append(
            _effect(one, f"mean cosine over layers with {other}", [table], unit="seeds of the other")
        )
    return found


def _effect(group: str, what: str, sides: Sequence[Mapping[str, Margins]], unit: str = "pairs") -> SeedEffect:
    """Return the mean over items and seeds; of several ways to see the seeds, the first one's with the widest ends."""
    every = [seed_groups.mean(side) for side in sides]
    first = every[0]
    ends = [one.interval for one in every if not math.isnan(one.interval[0])]
    low, high = (min(low for low, _ in ends), max(high for _, high in ends)) if ends else (math.nan, math.nan)
    value = Measured(value=first.value, interval=(low, high), n=first.items)
    return SeedEffect(
        group=group, what=what, value=value, unit=unit, seeds=first.seeds, carried_by=first.carried_by
    )


def _shift(before: Margins, after: Margins, names: Sequence[str]) -> dict[str, float]:
    """Return after - before of each pair that both have."""
    both = {name: after[name] - before[name] for name in names if name in before and name in after}
    return {name: value for name, value in both.items() if not math.isnan(value)}


def _mean(several: Sequence[Margins]) -> dict[str, float]:
    shared = [name for name in several[0] if all(name in one for one in several)]
    return {name: sum(one[name] for one in several) / len(several) for name in shared}


def _over_layers(pair: Cosines) -> float:
    known = [value for value in pair.by_layer if value is not None]
    return sum(known) / len(known) if known else math.nan
