"""Rotation of a rank-1 adapter's B vector during training (Turner et al. 2025, arXiv 2506.11613, section 4).

A rank-1 LoRA writes along one vector, B. While B only grows, its path is straight; where the fine-tune changes what
it learns, the path turns. Noise bends every path somewhere, so the sharpest turn is compared with that of straight
paths with the same noise in another order: each step's heading is the mean heading plus noise, part of which carries
over to the next step (an optimizer's momentum); the rest is permuted. Each place keeps its step's length (schedules
change it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_evals.content.direction_algebra import cosines
from em_evals.errors import EmEvalsError
from em_evals.results.journals import unpack
from em_evals.results.records.phase import Rotation

Vectors = NDArray[np.float64]

_DRAWS, _LEAST_WINDOWS = 199, 5


def rotations(journal: Sequence[Mapping[str, Any]], reach: int = 5) -> list[Rotation]:
    """Return every rank-1 adapter's path from a training journal; empty where nothing of rank 1 was trained.

    Args:
        journal: rows of training.jsonl, one per step.
        reach: k, the steps before and after each step.

    Raises:
        EmEvalsError: a step lacks a module's vector, or a vector is damaged.
    """
    rows = [row for row in journal if row.get("b")]
    steps = tuple(int(row["step"]) for row in rows)
    modules = sorted({module for row in rows for module in row["b"]})
    return [_rotation(module, steps, _path(rows, module), reach) for module in modules]


def _path(rows: Sequence[Mapping[str, Any]], module: str) -> Vectors:
    """Return [points, width]: a module's vector at each step."""
    try:
        path = np.stack([unpack(row["b"][module]) for row in rows])
    except (KeyError, ValueError):
        path = np.full((1, 1), np.nan)
    if not np.isfinite(path).all():
        raise EmEvalsError(
            f"this training's journal is damaged: not every step has a finite vector of {module}."
        )
    return path


def _rotation(module: str, steps: tuple[int, ...], path: Vectors, reach: int) -> Rotation:
    local = _local(path, reach)
    floor, p = _floor(path, reach)
    return Rotation(
        module=module,
        steps=steps,
        to_final=tuple(cosines(path, path[-1]).tolist()),
        local=tuple(local.tolist()),
        floor=floor,
        p=p,
    )


def _local(path: Vectors, reach: int) -> Vectors:
    """Return [..., points]: the cosine between B[i-k] - B[i] and B[i+k] - B[i], -1 on a straight path; NaN at the ends.

    Args:
        path: [..., points, width].
        reach: k.
    """
    local = np.full(path.shape[:-1], np.nan)
    if path.shape[-2] > 2 * reach:
        here = path[..., reach:-reach, :]
        local[..., reach:-reach] = cosines(
            path[..., : -2 * reach, :] - here, path[..., 2 * reach :, :] - here
        )
    return local


def _floor(path: Vectors, reach: int, draws: int = _DRAWS) -> tuple[float | None, float | None]:
    """Return the 95th percentile of the sharpest turn of reordered paths, and the share with one as sharp.

    (None, None) where the path is too short for five windows.
    """
    moves = _reduced(np.diff(path, axis=0))
    lengths = np.linalg.norm(moves, axis=1, keepdims=True)
    if len(moves) < _LEAST_WINDOWS * reach or not lengths.any():
        return None, None
    headings = moves / np.where(lengths > 0, lengths, 1.0)
    mean = headings.mean(0)
    rho = _carry(headings)
    rest = headings - mean
    fresh = np.concatenate([rest[:1] * np.sqrt(1 - rho**2), rest[1:] - rho * rest[:-1]])
    observed = np.nanmax(_local(path, reach))
    chance = np.random.default_rng(0)
    sharpest = np.empty(draws)
    for draw in range(draws):
        noise = fresh[chance.permutation(len(fresh))]
        noise[0] /= np.sqrt(1 - rho**2)
        for i in range(1, len(noise)):
            noise[i] += rho * noise[i - 1]
        again = np.concatenate([np.zeros((1, moves.shape[1])), ((mean + noise) * lengths).cumsum(0)])
        sharpest[draw] = np.nanmax(_local(again, reach))
    return float(np.quantile(sharpest, 0.95)), (1 + int((sharpest >= observed).sum())) / (1 + draws)


def _reduced(moves: Vectors) -> Vectors:
    """Return the steps in coordinates of the space that they span: same products, at most as wide as they are many."""
    if moves.shape[1] <= len(moves):
        return moves
    left, sizes, _ = np.linalg.svd(moves, full_matrices=False)
    return np.asarray(left * sizes)


def _carry(headings: Vectors) -> float:
    """Return the correlation of a step's noise with the next one's, 0 to 0.9.

    From second differences, so that a turn does not count as noise: if noise carries over by rho, differences of
    neighbors are correlated by -(1 - rho) / 2.
    """
    change = np.diff(headings, axis=0)
    change = change - change.mean(0)
    correlation = float((change[1:] * change[:-1]).sum() / max(float((change**2).sum()), 1e-300))
    return min(max(1 + 2 * correlation, 0.0), 0.9)
