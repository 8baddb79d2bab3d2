"""The side under test: the product's own engine on a card's base, with the requests that Inspect would make."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch

from em_evals.content.cards import ModelCard
from em_evals.engines.hf.engine import HFEngine
from em_evals.engines.protocol import Draw, Engine
from em_evals.errors import EmEvalsError
from em_evals.workflows.verify.plan import ROWS, Check

_PATIENCE = 1800
"""Time limit of one draw, in seconds."""


@dataclass(eq=False)
class CheckResult:
    """The engine's results for a check.

    Attributes:
        check: the check.
        draws: one for each request; fewer where it failed.
        error: why it failed; None if it did not.
    """

    check: Check
    draws: list[Draw] = field(default_factory=list)
    error: Exception | None = None


def refused(error: Exception) -> bool:
    """Check whether an engine refused to compute something, with a sentence, and did not fail."""
    return isinstance(error, EmEvalsError) and error.__cause__ is None


class Subject(HFEngine):
    """The engine as it is, with few rows at a time.

    Args:
        card: names the base and how to load it. So few rows are decoded at a time that some must wait.
    """

    def __init__(self, card: ModelCard) -> None:
        options = card.engine.model_copy(update={"max_num_seqs": ROWS})
        super().__init__(card.model_copy(update={"engine": options}))


def ask(engine: Engine, check: Check) -> CheckResult:
    """Submit a check's requests to an engine, wave by wave; an error ends this check only."""
    results = CheckResult(check)
    try:
        for wave in check.waves:
            futures = engine.submit_all(wave)
            results.draws += [future.result(_PATIENCE) for future in futures]
    except Exception as error:  # any failure of the engine becomes a row of the table
        results.error = error
    return results


def bits(model: Any) -> dict[str, str]:
    """Return a digest of every parameter and buffer, bit by bit, by name."""
    return {name: _digest(tensor) for name, tensor in model.state_dict().items()}


def _digest(tensor: torch.Tensor) -> str:
    plain = tensor.detach().cpu().contiguous()
    if not plain.dim():
        plain = plain[None]
    return hashlib.sha256(plain.view(torch.uint8).numpy().data).hexdigest()
