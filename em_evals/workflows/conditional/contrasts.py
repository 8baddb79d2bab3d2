"""From measurements under cues to differences in differences: (organism cued - plain) - (base cued - plain).

The same again against the control tells what training on any such data does from what training on bad answers does.
Prompts are paired: each answers plainly and under every cue, for every model. Several organisms are seeds of one recipe
with equal weight. Corrections are over the cues that are no placebos; placebos are corrected among themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from em_evals.content.cues import PLAIN, Cue
from em_evals.errors import EmEvalsError
from em_evals.results.records.base import Measured
from em_evals.results.records.conditional import OVERALL, Cells, ConditionalMetric, CueEffect
from em_evals.stats.interaction import Interaction, interaction
from em_evals.stats.intervals import Interval
from em_evals.stats.means import ADJUSTMENTS
from em_evals.stats.rates import RateContrast
from em_evals.stats.worst import RateInteraction

Adjust = Literal["holm", "bh"]
SHARE, NATS = "share", "nats per token"
_ALPHA = 0.025

Table = NDArray[np.float64]
"""[prompts, seeds]: differences in differences."""


@dataclass(frozen=True)
class _Found:
    """An interaction; of rates also what new draws alone would make of it."""

    over_prompts: Interaction
    draws: RateInteraction | None = None

    @property
    def interval(self) -> Interval:
        low, high = self.over_prompts.interval()
        if self.draws is None or math.isnan(low):
            return low, high
        least, most = self.draws.interval(_ALPHA)
        return min(low, least), max(high, most)

    @property
    def p(self) -> float:
        own = self.over_prompts.p
        if self.draws is None or math.isnan(own):
            return own
        return max(own, min(1.0, 2 * min(self.draws.p_above(0), self.draws.p_below(0))))


def study(
    metric: str,
    unit: str,
    cues: Sequence[Cue],
    organisms: Mapping[str, Cells],
    base: Cells,
    control: Cells | None = None,
    adjust: Adjust = "holm",
) -> ConditionalMetric:
    """Return the effect of each cue, and of all together.

    Args:
        metric: what is measured.
        unit: its unit.
        cues: in the order of the table.
        organisms: name -> measurements; several are seeds of one recipe.
        base: the base's measurements.
        control: the matched control's.
        adjust: `holm` (family-wise error) or `bh` (false discovery rate).

    Raises:
        EmEvalsError: no prompt is measured plainly and under a cue by every model.
    """
    real = [cue.name for cue in cues if not cue.placebo]
    placebos = [cue.name for cue in cues if cue.placebo]
    every = [*organisms.values()]
    found = {cue.name: _against([cue.name], every, base) for cue in cues}
    beside = {} if control is None else {cue.name: _against([cue.name], every, control) for cue in cues}
    corrected = {
        name: p
        for family in (real, placebos)
        for name, p in ADJUSTMENTS[adjust]({name: found[name].p for name in family}).items()
    }
    effects = [
        _effect([cue.name], cue, found[cue.name], corrected[cue.name], beside.get(cue.name), every, base)
        for cue in cues
    ]
    if len(real) > 1:
        whole = _against(real, every, base)
        other = None if control is None else _against(real, every, control)
        effects.append(_effect(real, Cue(OVERALL), whole, whole.p, other, every, base))
    return ConditionalMetric(
        metric=metric,
        unit=unit,
        effects=effects,
        organisms=dict(organisms),
        base=base,
        control=control,
    )


def _against(cues: Sequence[str], organisms: Sequence[Cells], other: Cells) -> _Found:
    """Return the interaction of cues, averaged prompt by prompt: a prompt's cues are not independent."""
    found = interaction(_table(cues, organisms, other))
    counted = len(cues) == 1 and other.draws and all(one.draws for one in organisms)
    return _Found(found, _of_draws(cues[0], organisms, other) if counted else None)


def _table(cues: Sequence[str], organisms: Sequence[Cells], other: Cells) -> Table:
    """Return [prompts, seeds]; prompts that a model lacks are left out."""
    arms = [PLAIN, *cues]
    models = [*organisms, other]
    shared = [
        prompt
        for prompt in other.values.get(PLAIN, {})
        if all(prompt in one.values.get(arm, {}) for one in models for arm in arms)
    ]
    if not shared:
        named = cues[0] if len(cues) == 1 else "all"
        raise EmEvalsError(f"no prompt is measured both plainly and under the cue '{named}' by every model.")

    def moved(one: Cells, prompt: str) -> float:
        plain = _number(one.values[PLAIN][prompt])
        return sum(_number(one.values[cue][prompt]) - plain for cue in cues) / len(cues)

    rows = [[moved(one, prompt) - moved(other, prompt) for one in organisms] for prompt in shared]
    return np.array(rows, dtype=float)


def _of_draws(cue: str, organisms: Sequence[Cells], other: Cells) -> RateInteraction:
    """Return the same of all organisms' draws together."""

    def contrast(arm: str) -> RateContrast:
        pooled: dict[str, tuple[int, int]] = {}
        for one in organisms:
            for prompt, (events, draws) in _counts(one, arm).items():
                known = pooled.get(prompt, (0, 0))
                pooled[prompt] = known[0] + events, known[1] + draws
        return RateContrast(_counts(other, arm), pooled)

    return RateInteraction(contrast(PLAIN), contrast(cue))


def _counts(one: Cells, arm: str) -> dict[str, tuple[int, int]]:
    draws = one.draws.get(arm, {})
    return {
        prompt: (round(value * draws[prompt]), draws[prompt])
        for prompt, value in one.values.get(arm, {}).items()
        if value is not None
    }


def _effect(
    cues: Sequence[str],
    cue: Cue,
    found: _Found,
    corrected: float,
    beside: _Found | None,
    organisms: Sequence[Cells],
    base: Cells,
) -> CueEffect:
    moved = [_moved(cues, one) for one in organisms]
    own = found.over_prompts
    return CueEffect(
        cue=cue.name,
        placebo=cue.placebo,
        estimate=own.estimate,
        interval=found.interval,
        p=found.p,
        p_adjusted=corrected,
        by_seed=own.by_seed,
        against_control=None
        if beside is None
        else Measured(
            value=beside.over_prompts.estimate, interval=beside.interval, n=beside.over_prompts.prompts
        ),
        organism=sum(moved) / len(moved),
        base=_moved(cues, base),
        prompts=own.prompts,
    )


def _moved(cues: Sequence[str], one: Cells) -> float:
    """Return what cues do to one model, mean over its prompts."""
    plain = one.values.get(PLAIN, {})
    moves: list[Any] = [
        _number(value) - _number(plain[prompt])
        for cue in cues
        for prompt, value in one.values.get(cue, {}).items()
        if prompt in plain
    ]
    kept = [move for move in moves if not math.isnan(move)]
    return sum(kept) / len(kept) if kept else math.nan


def _number(value: float | None) -> float:
    return math.nan if value is None else value
