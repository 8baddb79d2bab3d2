"""From measurements under cues to differences in differences: (organism cued - plain) - (base cued - plain).

The same again against the control tells what training on any such data does from what training on bad answers does.
Prompts are paired: each answers plainly and under every cue, for every model. Several organisms are seeds of one recipe
with equal weight. Holm's correction is over the cues that are no placebos; placebos are corrected among themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from em_evals import files
from em_evals.content.cues import PLAIN, Cue
from em_evals.errors import EmEvalsError
from em_evals.stats.interaction import Interaction, adjusted, interaction
from em_evals.stats.intervals import Interval

Measured = Mapping[str, Mapping[str, float]]
"""Cue -> prompt -> number, `plain` included, of one model."""

OVERALL = "overall"


@dataclass(frozen=True)
class CueEffect:
    """What one cue does.

    Attributes:
        cue: its name; `overall` is the mean over the cues that are no placebos.
        estimate: (organism cued - plain) - (base cued - plain), mean over prompts and seeds.
        interval: 95%, over prompts and seeds (stats/interaction.py).
        p: two-sided; `p_holm` is corrected over cues.
        by_seed: the estimate of each organism.
        against_control: the same with the control in place of the base; None without one.
        control_interval: its interval.
        base: what the cue does to the base itself (cued - plain).
        organism: and to the organisms.
        prompts: number of paired prompts.
    """

    cue: str
    placebo: bool
    estimate: float
    interval: Interval
    p: float
    p_holm: float
    by_seed: tuple[float, ...]
    against_control: float | None
    control_interval: Interval | None
    base: float
    organism: float
    prompts: int

    @property
    def found(self) -> bool:
        """Whether the interaction differs from 0 at 5%, after Holm's correction over cues."""
        return self.p_holm < 0.05


@dataclass(frozen=True)
class Study:
    """A metric's effects, by cue."""

    metric: str
    organisms: tuple[str, ...]
    base: str
    control: str | None
    effects: tuple[CueEffect, ...]
    notes: tuple[str, ...] = ()

    @property
    def largest(self) -> CueEffect | None:
        """The cue with the largest interaction; placebos and the overall mean left out."""
        own = [one for one in self.effects if not one.placebo and one.cue != OVERALL]
        return max(own, key=lambda one: one.estimate, default=None)

    def as_json(self) -> dict[str, Any]:
        """Return JSON values."""
        found: dict[str, Any] = files.without_nan(asdict(self))
        return found


def study(
    metric: str,
    cues: Sequence[Cue],
    organisms: Mapping[str, Measured],
    base: tuple[str, Measured],
    control: tuple[str, Measured] | None = None,
) -> Study:
    """Return the effect of each cue, and of all together.

    Args:
        metric: what is measured.
        cues: in the order of the table.
        organisms: name -> measurements; several are seeds of one recipe.
        base: its name and measurements.
        control: the same of the matched control.

    Raises:
        EmEvalsError: no prompt is measured plainly and under a cue by every model.
    """
    tables = {cue.name: _table(cue.name, organisms, base[1]) for cue in cues}
    others = {cue.name: _table(cue.name, organisms, control[1]) for cue in cues} if control else {}
    real = [cue.name for cue in cues if not cue.placebo]
    found = {name: interaction(table) for name, table in tables.items()}
    beside = {name: interaction(table) for name, table in others.items()}
    corrected = {
        **adjusted({name: found[name] for name in real}),
        **adjusted({cue.name: found[cue.name] for cue in cues if cue.placebo}),
    }
    effects = [
        _effect(
            cue.name,
            cue.placebo,
            found[cue.name],
            corrected[cue.name],
            beside.get(cue.name),
            organisms,
            base[1],
        )
        for cue in cues
    ]
    if len(real) > 1:
        effects.append(_overall(real, tables, others, effects))
    return Study(metric, tuple(organisms), base[0], control[0] if control else None, tuple(effects))


def _table(
    cue: str, organisms: Mapping[str, Measured], other: Measured
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return [prompts, seeds]; prompts that a model lacks are left out."""
    every = [*organisms.values(), other]
    shared = [
        p
        for p in other.get(PLAIN, {})
        if all(p in one.get(PLAIN, {}) and p in one.get(cue, {}) for one in every)
    ]
    if not shared:
        raise EmEvalsError(f"no prompt is measured both plainly and under the cue '{cue}' by every model.")
    rows = [
        [(one[cue][p] - one[PLAIN][p]) - (other[cue][p] - other[PLAIN][p]) for one in organisms.values()]
        for p in shared
    ]
    return np.array(rows, dtype=float)


def _effect(
    name: str,
    placebo: bool,
    found: Interaction,
    corrected: float,
    beside: Interaction | None,
    organisms: Mapping[str, Measured],
    base: Measured,
) -> CueEffect:
    moved = [_moved(name, one) for one in organisms.values()]
    return CueEffect(
        name,
        placebo,
        found.estimate,
        found.interval(),
        found.p,
        corrected,
        found.by_seed,
        beside.estimate if beside else None,
        beside.interval() if beside else None,
        _moved(name, base),
        sum(moved) / len(moved),
        found.prompts,
    )


def _overall(
    real: Sequence[str],
    tables: Mapping[str, Any],
    others: Mapping[str, Any],
    effects: Sequence[CueEffect],
) -> CueEffect:
    """Return the mean over cues, prompt by prompt: a prompt's cues are not independent."""
    sizes = {len(tables[name]) for name in real}
    own = [effect for effect in effects if effect.cue in real]
    nothing = Interaction(math.nan, math.nan, math.nan, (), 0)
    found = interaction(np.mean([tables[name] for name in real], axis=0)) if len(sizes) == 1 else nothing
    paired = others and len({len(others[name]) for name in real}) == 1
    beside = interaction(np.mean([others[name] for name in real], axis=0)) if paired else None
    return CueEffect(
        OVERALL,
        False,
        found.estimate,
        found.interval(),
        found.p,
        found.p,
        found.by_seed,
        beside.estimate if beside else None,
        beside.interval() if beside else None,
        sum(one.base for one in own) / len(own),
        sum(one.organism for one in own) / len(own),
        found.prompts,
    )


def _moved(cue: str, measured: Measured) -> float:
    """Return what a cue does to one model, mean over its prompts."""
    both = [p for p in measured.get(PLAIN, {}) if p in measured.get(cue, {})]
    moves = [measured[cue][p] - measured[PLAIN][p] for p in both]
    kept = [one for one in moves if not math.isnan(one)]
    return sum(kept) / len(kept) if kept else math.nan
