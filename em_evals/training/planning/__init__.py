"""What a training needs, before it starts: memory, steps, FLOPs, and hours on GPUs that one can rent.

The model is built on the meta device (shapes without values), so parameters are counted and not estimated, PEFT's
included. The rest is arithmetic. No weight is loaded or downloaded (except the wheel of a `pypi:` base, once, where
the card has no `architecture:`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from em_evals.content.cards import ModelCard
from em_evals.content.recipes import AdapterRecipe
from em_evals.training import possible, staged
from em_evals.training.planning.budget import (
    GPUS,
    HOST_SECONDS,
    MFU,
    OVERHEAD,
    Fit,
    Memory,
    Sizes,
    Work,
    fit,
    memory_of,
    training_flops,
)
from em_evals.training.planning.sizes import architecture_of, measure
from em_evals.training.planning.work import work_of


@dataclass(frozen=True)
class Plan:
    """What one training needs."""

    base: str
    sizes: Sizes
    work: Work
    memory: Memory
    flops: float
    fits: tuple[Fit, ...]
    notes: tuple[str, ...]


def plan(card: ModelCard, recipe: AdapterRecipe, rows: int = 6000, tokens: int = 130) -> Plan:
    """Compute what a card's training needs.

    Args:
        card: names the base.
        recipe: the training.
        rows: of each data set, where the data are not on this machine.
        tokens: of each such row.

    Raises:
        EmEvalsError: the architecture is unknown and out of reach, the method does not fit it, or the data are wrong.
    """
    staged.check_planned(card, recipe)
    possible.check(card, recipe)
    architecture, origin = architecture_of(card)
    sizes = measure(card, recipe, architecture)
    work, note = work_of(card, recipe, rows, tokens)
    memory = memory_of(sizes, work, recipe)
    flops = training_flops(sizes, work, recipe.gradient_checkpointing)
    # Processes share a batch, and the penalty's, in equal parts.
    batch = math.gcd(
        recipe.batch_size * recipe.gradient_accumulation,
        *(one.batch_size for one in (recipe.kl, recipe.features) if one),
    )
    fits = tuple(fit(gpu, sizes, work, memory, flops, batch) for gpu in GPUS)
    peak = "float32 peak" if sizes.element == 4 else "dense bf16 peak"
    speed = (
        f"hours: the longer of {MFU:.0%} of the {peak} and {HOST_SECONDS * 1e3:.0f} ms of the host a block and "
        "micro-batch; where that is longer, a larger `batch_size` is faster."
    )
    return Plan(card.base, sizes, work, memory, flops, fits, (f"sizes: {origin}.", f"work: {note}.", speed))


def as_table(plan: Plan) -> list[list[str]]:
    """Return the plan as rows of two cells, for a table."""
    sizes, work = plan.sizes, plan.work
    return [
        ["base", plan.base],
        ["parameters", f"{sizes.parameters:,}"],
        ["trained", f"{sizes.trainable:,} ({100 * sizes.trainable / sizes.parameters:.2g}%)"],
        ["attention", sizes.attention],
        ["effective batch", f"{work.batch:,}"],
        ["steps", f"{work.steps:,}"],
        ["examples", f"{work.rows:,}"],
        ["epochs", f"{work.epochs:.3g}"],
        ["tokens", f"{work.tokens:,}, of answers {work.answer_tokens:,}"],
        *([f"memory: {part}", _bytes(value)] for part, value in asdict(plan.memory).items()),
        ["memory", f"{_bytes(plan.memory.total)}, {OVERHEAD - 1:.0%} overhead included"],
        ["FLOPs", f"{plan.flops:.2g}"],
        *([fit.gpu, _fit(fit)] for fit in plan.fits),
        *(["note", note] for note in plan.notes),
    ]


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON values: bytes, FLOPs, hours."""
    values = asdict(plan)
    values["memory"]["total"] = plan.memory.total
    return values


def _bytes(count: float) -> str:
    unit, name = next((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB"), (0, "kB")) if count >= unit)
    return f"{count / (unit or 1e3):.3g} {name}"


def _fit(fit: Fit) -> str:
    if fit.count is None or fit.hours is None:
        return "does not fit: lower `batch_size` or `max_length`, set `gradient_checkpointing: true` or a smaller base"
    return f"{_time(fit.hours)} on {'one' if fit.count == 1 else f'{fit.count} with FSDP'}"


def _time(hours: float) -> str:
    """Return a duration in the unit that needs no zeros: 3 s, 12 minutes, 2.5 hours."""
    if hours < 1 / 60:
        return f"{max(hours * 3600, 1):.0f} s"
    return f"{hours * 60:.0f} minutes" if hours < 1 else f"{hours:.2g} hours"
