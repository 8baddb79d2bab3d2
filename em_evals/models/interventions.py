"""Interventions on the residual stream: hooks that apply them to a transformers model.

Every op is steps of one formula (changes.py), so rows with different interventions share a batch without a branch: a
set of interventions is a slot in the layer's tables, a row names its slot, and slot 0 changes nothing. Arithmetic is
float32; hooks are differentiable in h, so gradients flow through them in training.

Assumptions of the hooks are checked on a short forward pass when they are first put on a model (invariants.py): that
blocks pass on the stream and, for `site: writes`, that every write is hooked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from em_evals.content import directions
from em_evals.content.base_shape import depth_of
from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.errors import EmEvalsError
from em_evals.models.architecture import decoder_layers, unwrapped, write_modules
from em_evals.models.changes import changes
from em_evals.models.intervention_tables import Rows, Table
from em_evals.models.invariants import check_blocks, check_write_modules, first, replaced, streams
from em_evals.models.placement import device_of

Pair = tuple[Intervention, Sequence[Direction]]
"""An intervention with its directions, in their order."""


def load(interventions: Sequence[Intervention], config: Any) -> list[Pair]:
    """Load each intervention's directions and check them against the model (`scale_adapter` has none and is left out).

    Args:
        interventions: to load.
        config: the model's configuration, of transformers; weights are not needed.

    Raises:
        EmEvalsError: no such direction, or it was made for a model of another width or depth.
    """
    config = config.get_text_config()
    depth = depth_of(config)
    pairs: list[Pair] = []
    for intervention in interventions:
        layers = () if intervention.layers == "all" else intervention.layers
        for layer in (*layers, *([] if intervention.from_layer is None else [intervention.from_layer])):
            if layer >= depth:
                raise EmEvalsError(f"an intervention names layer {layer}; this model's are 0 to {depth - 1}.")
        if not intervention.directions:
            continue
        found = []
        for named in intervention.directions:
            path = directions.find(named) if isinstance(named, str) else None
            direction = directions.get(named)
            directions.check_shape(path, direction, depth, config.hidden_size)
            found.append(direction)
        pairs.append((intervention, found))
    return pairs


_LEFT = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 0.005, torch.bfloat16: 0.05}
"""The largest component along a direction that rounding may leave, relative to the stream's norm. Tiny models and
SmolLM2, whose first token is far longer than the others, left at most a tenth of it."""


class Steering:
    """A model's hooks and its registered sets of interventions. Without rows that name a set nothing happens.

    Args:
        model: a causal language model of transformers, bare or inside PEFT (attached now or later).
    """

    def __init__(self, model: Any) -> None:
        self._model = unwrapped(model)
        self._device = device_of(model)
        self._width = int(model.config.get_text_config().hidden_size)
        self._sets: list[tuple[Intervention, ...]] = [()]
        self._slots: dict[tuple[str, ...], int] = {(): 0}
        self._blocks: list[Table] = [Table([[]]) for _ in decoder_layers(model)]
        self._writes = Table([[]])
        self._rows: Rows | None = None
        self._handles: list[Any] = []
        self._hooked: set[str] = set()
        self._shape = torch.Size()
        """[rows, tokens, width] of what was written last."""

    def slot(self, interventions: Sequence[Intervention]) -> int:
        """Return the slot of a set, registered on first use; keyed by content: a rewritten file is another direction.

        Raises:
            EmEvalsError: a direction is missing, or does not fit the model.
        """
        wanted = tuple(one for one in interventions if one.op != "scale_adapter")
        key = tuple(one.digest for one in wanted)
        if key not in self._slots:
            self._slots[key] = self.register(load(wanted, self._model.config))
        return self._slots[key]

    def register(self, pairs: Sequence[Pair]) -> int:
        """Register a new slot for interventions with loaded directions; they act in the order of `pairs`.

        Raises:
            EmEvalsError: the model has no single residual stream, or writes into it in ways that are not known.
        """
        at_blocks = [pair for pair in pairs if pair[0].site == "block"]
        at_writes = [pair for pair in pairs if pair[0].site == "writes"]
        if at_writes:
            check_writes(self._model, at_writes)
            self._hook_writes()
        if at_blocks:
            check_blocks(self._model)
            self._hook_blocks()
        for layer, table in enumerate(self._blocks):
            table.slots.append(
                [one for pair in at_blocks if pair[0].at(layer) for one in changes(*pair, layer)]
            )
            table.build(self._width, self._device)
        self._writes.slots.append([one for pair in at_writes for one in changes(*pair, 0)])
        self._writes.build(self._width, self._device)
        self._sets.append(tuple(pair[0] for pair in pairs))
        return len(self._sets) - 1

    def positional(self, slot: int) -> bool:
        """Check whether a slot's effect on a token depends on where the answer begins."""
        return any(one.positions != "all" for one in self._sets[slot])

    @property
    def now(self) -> Rows | None:
        """The rows of the forward passes of this moment."""
        return self._rows

    @contextmanager
    def rows(self, rows: Rows | None) -> Iterator[None]:
        """Apply each row's set to the forward passes inside the context."""
        before, self._rows = self._rows, rows
        try:
            yield
        finally:
            self._rows = before

    def remove(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()

    def _hook_blocks(self) -> None:
        if "blocks" not in self._hooked:
            self._hooked.add("blocks")
            for table, block in zip(self._blocks, decoder_layers(self._model), strict=True):
                self._handles.append(block.register_forward_hook(self._hook(table)))

    def _hook_writes(self) -> None:
        if "writes" not in self._hooked:
            self._hooked.add("writes")
            for module in write_modules(self._model):
                self._handles.append(module.register_forward_hook(self._hook(self._writes)))
            # Again where blocks begin: PEFT may have wrapped the embedding in a module of its own since then.
            start = decoder_layers(self._model)[0]
            self._handles.append(start.register_forward_pre_hook(self._before, with_kwargs=True))

    def _hook(self, table: Table) -> Any:
        def hook(module: torch.nn.Module, arguments: Any, output: Any) -> Any:
            if self._rows is None or not table.steps:
                return None
            return replaced(output, self._edited(table, first(output), self._rows))

        return hook

    def _before(self, module: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if self._rows is None or not self._writes.steps:
            return None
        hidden = self._edited(self._writes, arguments[0] if arguments else named["hidden_states"], self._rows)
        if arguments:
            return (hidden, *arguments[1:]), named
        return arguments, named | {"hidden_states": hidden}

    def _edited(self, table: Table, hidden: torch.Tensor, rows: Rows) -> torch.Tensor:
        if hidden.dim() == 3:
            self._shape = hidden.shape
            return table.edit(hidden, rows)
        # Llama 4's experts return all rows' tokens as one list.
        return table.edit(hidden.view(self._shape), rows).view(hidden.shape)


def check_writes(model: Any, pairs: Sequence[Pair]) -> float:
    """Test on a short forward pass that interventions at `site: writes` ablate their directions from the stream.

    That every write is hooked is tested exactly and without directions (`check_write_modules`). Only arithmetic is
    compared with a tolerance, relative to the stream's norm: 1e-5 in float32, 0.005 in float16, 0.05 in bfloat16.

    Args:
        model: a causal language model of transformers, bare or inside PEFT.
        pairs: interventions at `site: writes`, each tested alone: of two that are not orthogonal, the second restores a
            part of the first one's direction, as expected.

    Returns:
        The largest |h·u| after any block and at any token, relative to |h| there without the intervention.

    Raises:
        EmEvalsError: the model writes into the stream in ways that are not known, or too much of a direction remains.
    """
    check_write_modules(model)
    plain, largest = unwrapped(model), 0.0
    inputs, outputs = streams(plain)
    norms = [one.float().norm(dim=-1).clamp(min=1e-30) for one in (inputs[0], *outputs)]
    for pair in pairs:
        table = Table([[replace(one, when=0, skip=0) for one in changes(*pair, 0)]])
        table.build(plain.config.get_text_config().hidden_size, norms[0].device)
        if not table.steps:
            continue
        inputs, outputs = streams(plain, table.alone)
        for stream, norm in zip((inputs[0], *outputs), norms, strict=True):
            along = stream.float().to(table.unit.device) @ table.unit[:, 0].T
            largest = max(largest, float((along.abs().amax(-1) / norm.to(along.device)).max()))
    if not largest <= _LEFT[plain.dtype]:
        raise EmEvalsError(
            f"`site: writes` leaves {largest:.1%} of the stream along its direction on {plain.config.model_type} in "
            f"{str(plain.dtype).removeprefix('torch.')}: use `dtype: float32`."
        )
    return largest


def refuse_positions(interventions: Sequence[Intervention]) -> None:
    """Refuse `positions` in passes that do not know where answers begin: `answer` never acts there, `prompt` always.

    Raises:
        EmEvalsError: an intervention acts on prompts or answers only.
    """
    for one in interventions:
        if one.positions != "all":
            raise EmEvalsError(
                f"`{one.op}` with `positions: {one.positions}` is not possible here: these passes do not "
                "distinguish prompt from answer; use a card whose interventions have `positions: all`."
            )
