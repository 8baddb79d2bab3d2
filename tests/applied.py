"""Interventions on a plain model, by the hooks of our engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from em_evals.models.intervention_tables import Rows
from em_evals.models.interventions import Steering
from em_evals.models.placement import device_of


@contextmanager
def applied(model: Any, pairs: Sequence[Any]) -> Iterator[None]:
    """Apply interventions, in order, to every row of every forward pass; rows begin at column 0."""
    steering = Steering(model)
    try:
        slot = steering.register(pairs)
        with steering.rows(Rows(torch.tensor([slot], device=device_of(model)))):
            yield
    finally:
        steering.remove()
