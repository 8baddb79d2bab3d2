"""What an intervention does to the residual stream at one layer, as numbers that hooks, vLLM and weights all take.

Every op is a sequence of steps h + a + g·min(t - h·u, limit) u. `add` has a = scale·v and g = 0; `ablate` g = 1 and
t = m·u; `clamp` g = 1 and t = value; `cap` the same with limit = 0, along -u for a lower bound. A subspace is one
step for each vector of an orthonormal basis: such projections commute, so that their sequence is the joint one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    when: int
    skip: int
    limit: float = math.inf


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
    vector = torch.tensor(direction.vectors[source])
    unit = vector / vector.norm().clamp(min=torch.finfo(torch.float32).tiny)
    add, gate, target, limit = torch.zeros_like(vector), 1.0, 0.0, math.inf
    if intervention.op == "add":
        gate = 0.0
        norm = float(direction.mean_norm[source])
        add = intervention.scale * (norm * unit if intervention.relative else vector)
    elif intervention.op == "clamp":
        target = intervention.value
    elif intervention.op == "cap":
        sign = 1.0 if intervention.bound == "upper" else -1.0
        unit, target, limit = sign * unit, sign * intervention.value, 0.0
    elif intervention.reference == "mean":
        target = float(torch.tensor(direction.base_mean[source]) @ unit)
    return [Change(add, unit, gate, target, when, skip, limit)]


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
