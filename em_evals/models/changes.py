"""What an intervention does to the residual stream at one layer, as numbers that hooks, vLLM and weights all take.

Every op is a sequence of steps h + a + g·min(t - h·u, limit) u. `add` has a = scale·v and g = 0; `ablate` g = 1 and
t = m·u; `clamp` g = 1 and t = value; `cap` the same with limit = 0, along -u for a lower bound. A subspace is one
step for each vector of an orthonormal basis: such projections commute, so that their sequence is the joint one.

An op is one function decorated with `step`; docs/contributing.md says how to add one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention

_WHEN = {"all": 0, "prompt": 1, "answer": 2}
_RANK = 1e-3
"""A singular value of unit directions below which they do not span one dimension more: an angle of 0.08 degrees, where
what is left of two float32 vectors' difference is still exact to a part in ten thousand."""


@dataclass(frozen=True, eq=False)
class Change:
    """One step at one layer: h + add + gate·min(target - h·unit, limit)·unit, where `when` and `skip` allow it.

    Attributes:
        add: float32 [width].
        unit: float32 [width], of length 1 (or 0: the direction is 0 here).
        gate: 0 or 1.
        target: what h·unit becomes where the gate is 1.
        when: 0 all tokens, 1 the prompt's, 2 the answer's.
        skip: so many first tokens are left alone.
        limit: how far h·unit may be raised: 0 for a cap, else infinity.
    """

    add: torch.Tensor
    unit: torch.Tensor
    gate: float
    target: float
    when: int = 0
    skip: int = 0
    limit: float = math.inf


@dataclass(frozen=True, eq=False)
class Along:
    """A direction at one layer: what the step of an op is computed from.

    Attributes:
        vector: v, float32 [width].
        unit: v/|v|, float32 [width]; 0 where v is 0.
        mean_norm: the mean norm of the base's stream.
        base_mean: the mean of the base's stream, float32 [width].
    """

    vector: torch.Tensor
    unit: torch.Tensor
    mean_norm: float
    base_mean: torch.Tensor

    @classmethod
    def of(cls, direction: Direction, layer: int) -> Along:
        """Read a direction's numbers at a layer."""
        vector = torch.tensor(direction.vectors[layer], dtype=torch.float32)
        unit = vector / vector.norm().clamp(min=torch.finfo(torch.float32).tiny)
        mean = torch.tensor(direction.base_mean[layer], dtype=torch.float32)
        return cls(vector, unit, float(direction.mean_norm[layer]), mean)


Step = Callable[[Intervention, Along], Change]
STEPS: dict[str, Step] = {}
"""The step of each op along one direction. Where it acts (`positions`, `skip`) is filled in by `changes`."""


def step(op: str) -> Callable[[Step], Step]:
    """Register the function that computes an op's step; content/intervention.py lists the fields that it reads."""

    def register(compute: Step) -> Step:
        STEPS[op] = compute
        return compute

    return register


def moved_to(unit: torch.Tensor, target: float, limit: float = math.inf) -> Change:
    """Return the step that sets h·unit to `target`, raising it by at most `limit`."""
    return Change(torch.zeros_like(unit), unit, 1.0, target, limit=limit)


@step("add")
def _add(one: Intervention, here: Along) -> Change:
    push = one.scale * (here.mean_norm * here.unit if one.relative else here.vector)
    return Change(push, here.unit, 0.0, 0.0)


@step("ablate")
def _ablate(one: Intervention, here: Along) -> Change:
    return moved_to(here.unit, float(here.base_mean @ here.unit) if one.reference == "mean" else 0.0)


@step("clamp")
def _clamp(one: Intervention, here: Along) -> Change:
    return moved_to(here.unit, one.value)


@step("cap")
def _cap(one: Intervention, here: Along) -> Change:
    # A lower bound is an upper bound along -u.
    sign = 1.0 if one.bound == "upper" else -1.0
    return moved_to(sign * here.unit, sign * one.value, limit=0.0)


def changes(intervention: Intervention, directions: Sequence[Direction], layer: int) -> list[Change]:
    """The steps of an intervention at a layer; see `Intervention` for the formulas.

    Args:
        intervention: any op but `scale_adapter`.
        directions: one for each of `intervention.directions`.
        layer: the decoder block, counted from 0.

    Returns:
        One step; for a subspace one for each of its dimensions. Directions that are 0 at the layer, or that are nearly
        in the span of the others (a singular value of the unit vectors below 0.001), add none.
    """
    source = layer if intervention.from_layer is None else intervention.from_layer
    when, skip = _WHEN[intervention.positions], int(intervention.skip == "sink")
    if len(directions) > 1:
        zero = torch.zeros(directions[0].width)
        return [
            Change(zero, unit, 1.0, target if intervention.reference == "mean" else 0.0, when, skip)
            for unit, target in _subspace(directions, source)
        ]
    (direction,) = directions
    one = STEPS[intervention.op](intervention, Along.of(direction, source))
    return [replace(one, when=when, skip=skip)]


def _subspace(directions: Sequence[Direction], layer: int) -> list[tuple[torch.Tensor, float]]:
    """An orthonormal basis of the directions' span, and where along it each one has its own mean.

    Each file may have another mean m_i. The targets are the coordinates of the point p of the span with
    p·v_i = m_i·v_i for every i (of least squares where directions nearly coincide); with one mean in common p is its
    projection.
    """
    vectors = np.stack([one.vectors[layer] for one in directions]).astype(np.float64)
    means = np.stack([one.base_mean[layer] for one in directions]).astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1)
    there = lengths > 0
    if not there.any():
        return []
    units = vectors[there] / lengths[there, None]
    left, values, basis = np.linalg.svd(units, full_matrices=False)
    kept = values > _RANK
    targets = (left.T @ (means[there] * units).sum(1))[kept] / values[kept]
    return [(torch.from_numpy(u).float(), float(t)) for u, t in zip(basis[kept], targets, strict=True)]
