"""Seed groups: models of one recipe that differ by their training seed, measured as one (`--group NAME=a,b,c`).

Each seed is a unit: an interval over questions (or pairs) and seeds, not over draws. See stats/crossed.py. Models whose
logs state one recipe and different seeds (content/recipe_identity.py) form a group by themselves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, takewhile
from pathlib import PurePath
from typing import NamedTuple

import numpy as np

from em_evals.errors import EmEvalsError
from em_evals.results.em_rates import RATES, clusters
from em_evals.results.graded_draw import GradedDraw
from em_evals.results.rate import Rate
from em_evals.stats.crossed import crossed
from em_evals.stats.proportions import Interval

Groups = Mapping[str, Sequence[str]]
"""Name of a group -> names of its models."""

_ALPHA = 0.025


@dataclass(frozen=True)
class OverSeeds:
    """A mean over items and seeds.

    Attributes:
        value: the mean; NaN without items that all seeds have.
        interval: 95%, over items and seeds.
        seeds: each seed's own mean.
        carried_by: the seed without which less than half of the value is left; None if there is none.
        items: number of questions or pairs.
    """

    value: float
    interval: Interval
    seeds: dict[str, float]
    carried_by: str | None
    items: int


@dataclass(frozen=True)
class Graded:
    """One model's graded draws.

    Attributes:
        names: what a group may call it.
        digests: digests of its card; empty where unknown.
        draws: its draws.
        asked: what it was asked; models that were asked something else are no group.
        made: its recipe and seed, where its log states them.
    """

    names: tuple[str, ...]
    digests: frozenset[str]
    draws: Sequence[GradedDraw]
    asked: str = ""
    made: tuple[str, str] = ("", "")


class Made(NamedTuple):
    """How a model was trained: digest of the recipe, seed, card digests; empty where unknown."""

    recipe: str
    seed: str
    digests: Collection[str] = ()


def parse(texts: Iterable[str]) -> dict[str, list[str]]:
    """Return the groups of options like `NAME=a,b,c`.

    Raises:
        EmEvalsError: not of that form, fewer than two models, or a model that is listed twice.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        name, _, listed = text.partition("=")
        models = [model.strip() for model in listed.split(",") if model.strip()]
        if not name.strip() or len(models) < 2:
            raise EmEvalsError(f"'{text}' is not a group: write --group NAME=a,b,c with two or more models.")
        every = [*models, *(model for own in found.values() for model in own)]
        if twice := next((model for model in every if every.count(model) > 1), None):
            raise EmEvalsError(f"'{twice}' is listed twice in --group; name each seed's model once.")
        found[name.strip()] = models
    return found


def member(model: str, groups: Groups) -> tuple[str, str] | None:
    """Return (group, model as listed) of a model; None if no group lists it.

    Example:
        >>> member("local/risky-s1", {"risky": ["risky-s0", "risky-s1"]})
        ('risky', 'risky-s1')
    """
    names = {model, model.removeprefix("local/"), PurePath(model).name, PurePath(model).stem}
    return next(((group, one) for group, own in groups.items() for one in own if one in names), None)


def by_recipe(models: Mapping[str, Made]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the groups of models that state one recipe and different seeds, and notes on what is no group.

    Args:
        models: models that were asked the same, by name.
    """
    alike: dict[str, list[str]] = {}
    for name, made in models.items():
        if made.recipe and made.seed:
            alike.setdefault(made.recipe, []).append(name)
    found: dict[str, list[str]] = {}
    notes = same(models)
    for recipe, names in alike.items():
        seeds = [models[name].seed for name in names]
        if twice := next((seed for seed in seeds if seeds.count(seed) > 1), None):
            one, other = [name for name, seed in zip(names, seeds, strict=True) if seed == twice][:2]
            if not set(models[one].digests) & set(models[other].digests):
                notes.append(
                    f"{one} and {other} state one recipe and the same training seed {twice}, so they are not two "
                    "seeds: no group is formed of their recipe."
                )
        elif len(names) > 1:
            found[_name(names, recipe)] = names
    return found, notes


def same(models: Mapping[str, Made]) -> list[str]:
    """Return a note on each two names of one model."""
    seen: dict[str, str] = {}
    found = {
        (other, name): digest
        for name, made in models.items()
        for digest in sorted(made.digests)
        if (other := seen.setdefault(digest, name)) != name
    }
    return [
        f"{one} and {other} are the same model (card digest {digest})."
        for (one, other), digest in found.items()
    ]


def told(group: str, names: Sequence[str]) -> str:
    """Return the sentence about a group that nobody named."""
    return (
        f"{', '.join(names)} state one recipe and different training seeds: they are measured as the group '{group}'; "
        "--group NAME=a,b,c names groups otherwise."
    )


def _name(names: Sequence[str], recipe: str) -> str:
    """Return a name for models of one recipe: what their names begin with.

    Example:
        >>> _name(["local/risky-s0", "local/risky-s1"], "0123456789")
        'risky seeds'
    """
    letters = zip(*(PurePath(name).name for name in names), strict=False)
    start = "".join(own[0] for own in takewhile(lambda own: len(set(own)) == 1, letters))
    start = re.sub(r"[-_. ]*(?:seed|s)?[-_. ]*\d*$", "", start)
    return f"{start} seeds" if start else f"recipe {recipe[:8]}"


def complete(
    group: str,
    listed: Sequence[str],
    digests: Mapping[str, Iterable[str]],
    made: Mapping[str, tuple[str, str]] | None = None,
) -> None:
    """Check that a group is whole and that its models differ, by their seed alone where that is known.

    Args:
        group: its name.
        listed: its models.
        digests: card digests of each model that has numbers; empty where unknown.
        made: (digest of the recipe, seed) of each model; empty where unknown.

    Raises:
        EmEvalsError: a model has no numbers, two are the same model or of the same seed, or recipes differ.
    """
    if missing := [model for model in listed if model not in digests]:
        raise EmEvalsError(f"there are no numbers of '{missing[0]}', which the group {group} lists.")
    seen: dict[str, str] = {}
    for model, own in digests.items():
        for digest in own:
            if (other := seen.setdefault(digest, model)) != model:
                raise EmEvalsError(
                    f"{other} and {model} are the same model (card digest {digest}), which the group {group} would "
                    "count as two seeds: list it once."
                )
    known = {model: own for model, own in (made or {}).items() if all(own)}
    for one, other in combinations(known, 2):
        if known[one][0] != known[other][0]:
            raise EmEvalsError(
                f"{one} and {other} were trained by different recipes, so they do not differ by their seed alone: the "
                f"group {group} cannot list both."
            )
        if known[one][1] == known[other][1]:
            raise EmEvalsError(
                f"{one} and {other} were trained with the same seed ({known[one][1]}), and the group {group} would "
                "count them as two seeds: list one."
            )


def rates(models: Iterable[Graded], groups: Groups) -> dict[str, dict[str, OverSeeds]]:
    """Return the shares of every group over base questions and seeds.

    Args:
        models: measured models; those that no group lists are left out.
        groups: the groups.

    Raises:
        EmEvalsError: a model of a group has no numbers, or two are the same.
    """
    found: dict[str, dict[str, Graded]] = {name: {} for name in groups}
    for own in models:
        for name in own.names:
            if (place := member(name, groups)) is not None:
                if place[1] in found[place[0]] and found[place[0]][place[1]] is not own:
                    raise EmEvalsError(f"'{place[1]}' of the group {place[0]} is in two files; name one.")
                found[place[0]][place[1]] = own
    for name, listed in groups.items():
        made = {model: own.made for model, own in found[name].items()}
        complete(name, listed, {model: own.digests for model, own in found[name].items()}, made)
    return {name: _rates(seeds) for name, seeds in found.items()}


def unnamed(models: Sequence[Graded], groups: Groups) -> tuple[dict[str, dict[str, OverSeeds]], list[str]]:
    """Return the shares of the groups that models' recipes form, and notes on them and on models with two names.

    Args:
        models: measured models.
        groups: named groups; their models are left out.
    """
    asked: dict[str, dict[str, Graded]] = {}
    for own in models:
        if not any(member(name, groups) for name in own.names):
            asked.setdefault(own.asked, {}).setdefault(own.names[0], own)
    found: dict[str, dict[str, OverSeeds]] = {}
    notes: list[str] = []
    for questions, named in asked.items():
        own_groups, own_notes = by_recipe({name: Made(*one.made, one.digests) for name, one in named.items()})
        notes += own_notes
        for group, names in own_groups.items():
            title = group if group not in found else f"{group}, {questions}"
            notes.append(told(title, names))
            found[title] = _rates({name: named[name] for name in names})
    return found, list(dict.fromkeys(notes))


def _rates(seeds: Mapping[str, Graded]) -> dict[str, OverSeeds]:
    draws = {model: own.draws for model, own in seeds.items()}
    return {share: rate(draws, share) for share in RATES}


def rate(seeds: Mapping[str, Sequence[GradedDraw]], share: str) -> OverSeeds:
    """Return a rate or share over base questions and seeds.

    The interval includes that of all draws pooled (other questions), which is not zero where no seed has an event.

    Args:
        seeds: draws of each seed's model.
        share: a name in `em_rates.SHARES`.
    """
    counted = {name: clusters(draws, share, base=True) for name, draws in seeds.items()}
    values = {
        name: {question: events / draws for question, (events, draws) in own.items() if draws}
        for name, own in counted.items()
    }
    found = mean(values)
    pooled: dict[str, tuple[int, int]] = {}
    for own in counted.values():
        for question, (events, draws) in own.items():
            before = pooled.get(question, (0, 0))
            pooled[question] = before[0] + events, before[1] + draws
    low, high = Rate.of(pooled.values()).random
    if not math.isnan(low) and not math.isnan(found.value):
        low, high = min(low, found.interval[0]), max(high, found.interval[1])
    return OverSeeds(found.value, (max(low, 0.0), min(high, 1.0)), found.seeds, found.carried_by, found.items)


def mean(seeds: Mapping[str, Mapping[str, float]]) -> OverSeeds:
    """Return the mean over items and seeds of numbers such as margins.

    Args:
        seeds: each seed's number of each item; items that a seed lacks are left out.
    """
    names, sides = list(seeds), list(seeds.values())
    shared = [item for item in sides[0] if all(item in own for own in sides)]
    if not shared:
        return OverSeeds(math.nan, (math.nan, math.nan), {}, None, 0)
    found = crossed(np.array([[own[item] for own in sides] for item in shared]))
    carried = found.carried_by
    return OverSeeds(
        found.mean,
        found.interval(_ALPHA),
        dict(zip(names, found.seeds, strict=True)),
        None if carried is None else names[carried],
        len(shared),
    )
