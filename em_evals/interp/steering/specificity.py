"""Is a direction's effect its own? The slope of the margins over the scale, beside directions that carry nothing.

Null draws of the three kinds of interp/nulls.py, and the control's direction, are added at the same layers, at equal
norm and with the same scales. Each takes its own best layer, as the direction does. They are scored by forced choice
only: answers of hundreds of draws would take days.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from em_evals.content.cards import ResolvedCard
from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.content.pairs import Pair
from em_evals.interp import effects, nulls
from em_evals.interp.fixed_answers import Condition, score_answers
from em_evals.interp.resume import Finished
from em_evals.interp.steering.study import Settings
from em_evals.results.records.claims import Claim

MEASURE = "slope of the margins over the scale (nats per token)"
_KINDS = (nulls.RANDOM, nulls.COVARIANCE, nulls.PERMUTED)


def claim(
    card: ResolvedCard,
    direction: Direction,
    control: Direction | None,
    settings: Settings,
    layers: Sequence[int],
    pairs: Sequence[Pair],
    finished: Finished,
) -> Claim:
    """Compare the direction's largest slope over layers with that of `settings.nulls` draws of each null.

    Args:
        card: the model that is steered.
        direction: the direction.
        control: the control's direction at equal norm; None: not compared.
        settings: scales, and the number of draws.
        layers: decoder blocks to steer at.
        pairs: forced-choice pairs that chose nothing.
        finished: the results so far.
    """
    chance = np.random.default_rng(settings.seed)
    drawn = {kind: nulls.of(direction, kind, settings.nulls, chance) for kind in _KINDS}
    arms: dict[str, list[Direction]] = {"": [direction]}
    arms |= {
        kind: [replace(direction, vectors=one, folds=None) for one in found]
        for kind, found in drawn.items()
        if found is not None
    }
    if control is not None:
        arms[nulls.OTHERS] = [control]
    rows = [(name, one) for name, some in arms.items() for one in some]
    conditions = [Condition.of(card)] + [
        Condition.of(card, _added(one, layer, scale, settings.relative))
        for _, one in rows
        for layer in layers
        for scale in settings.scales
    ]
    base, *found = score_answers(card, conditions, pairs, finished, "null directions")
    shifts = np.array([_shift(base, one, pairs) for one in found])
    slopes = _slopes(shifts.reshape(len(rows), len(layers), -1), settings.scales)
    beside = {name: slopes[[i for i, (own, _) in enumerate(rows) if own == name]] for name in arms if name}
    compared = nulls.claim(MEASURE, slopes[0], beside)
    return compared.model_copy(update={"layer": None if compared.layer is None else layers[compared.layer]})


def _added(direction: Direction, layer: int, scale: float, relative: bool) -> Intervention:
    return Intervention(op="add", direction=direction, layers=(layer,), scale=scale, relative=relative)


def _shift(before: Mapping[str, float], after: Mapping[str, float], pairs: Sequence[Pair]) -> float:
    """Return the mean shift of the margins, both domains equally weighted."""
    parts = [part.value for part in effects.by_domain(before, after, pairs) if part.value is not None]
    return float(np.mean(parts)) if parts else float("nan")


def _slopes(shifts: NDArray[np.float64], scales: Sequence[float]) -> NDArray[np.float64]:
    """Return [directions, layers]: sum s·shift / sum s² over the scales ([directions, layers, scales])."""
    steps = np.asarray(scales)
    return np.asarray(shifts @ steps / (steps @ steps))
