"""Seed groups: models of one recipe that differ by their training seed, measured as one (`--group NAME=a,b,c`).

Each seed is a unit: an interval over questions (or pairs) and seeds, not over draws. See stats/crossed.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from em_evals.errors import EmEvalsError
from em_evals.results.em_rates import RATES, GradedDraw, clusters
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
    """

    names: tuple[str, ...]
    digests: frozenset[str]
    draws: Sequence[GradedDraw]


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


def complete(group: str, listed: Sequence[str], digests: Mapping[str, Iterable[str]]) -> None:
    """Check that a group is whole and that its models differ.

    Args:
        group: its name.
        listed: its models.
        digests: card digests of each model that has numbers; empty where unknown.

    Raises:
        EmEvalsError: a model has no numbers, or two are the same model.
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
        complete(name, listed, {model: own.digests for model, own in found[name].items()})
    return {
        name: {share: rate({model: own.draws for model, own in seeds.items()}, share) for share in RATES}
        for name, seeds in found.items()
    }


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
