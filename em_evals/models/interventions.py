"""Interventions on the residual stream: hooks that apply them to a transformers model.

Every op is steps of one formula (changes.py), so that rows with different interventions share a batch without a branch:
a set of interventions is a slot in the layer's tables, a row names its slot, and slot 0 changes nothing. Arithmetic is
float32; hooks are differentiable in h, so that a training can go on through them.

What hooks lean on is checked on a short forward pass when they are first put on a model (invariants.py): that blocks
hand on the stream, and for `site: writes` that every write is reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from em_evals.content import directions
from em_evals.content.base_shape import depth_of
from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.errors import EmEvalsError
from em_evals.models.architecture import decoder_layers, unwrapped, write_modules
from em_evals.models.changes import Change, changes
from em_evals.models.invariants import check_blocks, check_write_modules, first, replaced, streams

Pair = tuple[Intervention, Sequence[Direction]]
"""An intervention with its directions, in their order."""


def load(interventions: Sequence[Intervention], config: Any) -> list[Pair]:
    """Each intervention with its direction, checked against the model (`scale_adapter` has none and is left out).

    Args:
        interventions: what is to be done.
        config: the model's configuration, of transformers; weights need not be there.

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
"""How much of a direction rounding may leave, as a part of the stream's norm. Tiny models and SmolLM2, whose
first token is far longer than the others, left at most a tenth of it."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Whose turn it is: each row's slot, and where its tokens stand.

    Attributes:
        slots: int64 [rows], or [1] for all rows alike.
        positions: int64 [rows, tokens], each token's place in its row; None: rows begin at column 0.
        answers: int64 [rows], where each row's answer begins; None: nothing is answer.
    """

    slots: torch.Tensor
    positions: torch.Tensor | None = None
    answers: torch.Tensor | None = None


@dataclass(eq=False)
class _Table:
    """The changes of every slot at one place, [steps, slots, …]: step k of a slot is its k-th change here."""

    slots: list[list[Change]] = field(default_factory=list)

    def build(self, width: int, device: torch.device) -> None:
        """Stack the slots' changes; what a slot lacks is a change of nothing."""
        nothing = Change(torch.zeros(width), torch.zeros(width), 0.0, 0.0, 0, 0)
        self.steps = max(map(len, self.slots), default=0)
        grid = [[s[k] if k < len(s) else nothing for s in self.slots] for k in range(self.steps)]

        def stacked(name: str) -> torch.Tensor:
            values = [[torch.as_tensor(getattr(c, name)) for c in row] for row in grid]
            return torch.stack([torch.stack(row) for row in values]).to(device)

        if self.steps:
            self.add, self.unit, self.gate, self.target, self.when, self.skip = map(
                stacked, ("add", "unit", "gate", "target", "when", "skip")
            )
            self.limit = stacked("limit")

    def edit(self, hidden: torch.Tensor, rows: Rows) -> torch.Tensor:
        """The changed stream, [rows, tokens, width], in its own dtype."""
        stream, slots = hidden.float(), rows.slots
        places = rows.positions
        if places is None:
            places = torch.arange(stream.shape[1], device=stream.device)[None]
        for k in range(self.steps):
            unit = self.unit[k][slots]
            along = self.target[k][slots][:, None] - (stream @ unit[..., None])[..., 0]
            along = torch.minimum(along, self.limit[k][slots][:, None])
            push = (self.gate[k][slots][:, None] * along)[..., None] * unit[:, None] + self.add[k][slots][
                :, None
            ]
            stream = stream + push * self._reach(k, places, rows)[..., None]
        return stream.to(hidden.dtype)

    def alone(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the first slot makes of one row, [1, tokens, width] or [tokens, width]."""
        rows = Rows(torch.zeros(1, dtype=torch.int64, device=self.unit.device))
        return self.edit(hidden.reshape(1, -1, hidden.shape[-1]), rows).reshape(hidden.shape)

    def _reach(self, k: int, places: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Float [rows, tokens], 1 where step k acts."""
        when, skip = self.when[k][rows.slots][:, None], self.skip[k][rows.slots][:, None]
        answer = torch.zeros_like(places, dtype=torch.bool)
        if rows.answers is not None:
            answer = places >= rows.answers[:, None]
        allowed = (when == 0) | ((when == 1) & ~answer) | ((when == 2) & answer)
        return (allowed & (places >= skip)).float()


class Steering:
    """A model's hooks and the sets of interventions that it knows. Without rows that name a set nothing happens.

    Args:
        model: a causal language model of transformers, bare or inside PEFT (attached now or later).
    """

    def __init__(self, model: Any) -> None:
        self._model = unwrapped(model)
        self._device = next(model.parameters()).device
        self._width = int(model.config.get_text_config().hidden_size)
        self._sets: list[tuple[Intervention, ...]] = [()]
        self._slots: dict[tuple[str, ...], int] = {(): 0}
        self._blocks: list[_Table] = [_Table([[]]) for _ in decoder_layers(model)]
        self._writes = _Table([[]])
        self._rows: Rows | None = None
        self._handles: list[Any] = []
        self._hooked: set[str] = set()
        self._shape = torch.Size()
        """[rows, tokens, width] of what was written last."""

    def slot(self, interventions: Sequence[Intervention]) -> int:
        """The slot of a set, registered on first use; sets are told apart by content, so a rewritten direction counts.

        Raises:
            EmEvalsError: a direction is missing, or does not fit the model.
        """
        wanted = tuple(one for one in interventions if one.op != "scale_adapter")
        key = tuple(one.digest for one in wanted)
        if key not in self._slots:
            self._slots[key] = self.register(load(wanted, self._model.config))
        return self._slots[key]

    def register(self, pairs: Sequence[Pair]) -> int:
        """A new slot for interventions whose directions are at hand; acts in the order of `pairs`.

        Raises:
            EmEvalsError: the model has no one residual stream, or writes into it in ways that are not known.
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
        """Whether a slot's effect on a token depends on where the answer begins."""
        return any(one.positions != "all" for one in self._sets[slot])

    @contextmanager
    def rows(self, rows: Rows | None) -> Iterator[None]:
        """Apply each row's set to the forward passes inside the context."""
        before, self._rows = self._rows, rows
        try:
            yield
        finally:
            self._rows = before

    def remove(self) -> None:
        """Take the hooks off the model."""
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
            # Once more where blocks begin: PEFT may have put a module of its own around the embedding since then.
            start = decoder_layers(self._model)[0]
            self._handles.append(start.register_forward_pre_hook(self._before, with_kwargs=True))

    def _hook(self, table: _Table) -> Any:
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

    def _edited(self, table: _Table, hidden: torch.Tensor, rows: Rows) -> torch.Tensor:
        if hidden.dim() == 3:
            self._shape = hidden.shape
            return table.edit(hidden, rows)
        # Llama 4's experts put out all rows' tokens as one list.
        return table.edit(hidden.view(self._shape), rows).view(hidden.shape)


@contextmanager
def applied(model: Any, pairs: Sequence[Pair]) -> Iterator[None]:
    """Apply interventions, in order, to every row of every forward pass inside the context.

    Rows are taken to begin at column 0 (padding on the right).

    Raises:
        EmEvalsError: an intervention needs to know where answers begin.
    """
    refuse_positions([pair[0] for pair in pairs])
    steering = Steering(model)
    try:
        slot = steering.register(pairs)
        device = next(model.parameters()).device
        with steering.rows(Rows(torch.tensor([slot], device=device))):
            yield
    finally:
        steering.remove()


def check_writes(model: Any, pairs: Sequence[Pair]) -> float:
    """Test on a short forward pass that interventions at `site: writes` leave nothing of their directions in a stream.

    That every write is hooked is tested exactly and without directions (`check_write_modules`); what is compared with
    a tolerance is arithmetic: a part of the stream's norm, 1e-5 in float32, 0.005 in float16, 0.05 in bfloat16.

    Args:
        model: a causal language model of transformers, bare or inside PEFT.
        pairs: interventions at `site: writes`, each looked at alone: of two that are not orthogonal the second puts a
            part of the first one back, as one would expect of them.

    Returns:
        The largest |h·u| after any block and at any token, as a part of |h| there without the intervention.

    Raises:
        EmEvalsError: the model writes into the stream in ways that are not known, or too much of a direction is left.
    """
    check_write_modules(model)
    plain, largest = unwrapped(model), 0.0
    inputs, outputs = streams(plain)
    norms = [one.float().norm(dim=-1).clamp(min=1e-30) for one in (inputs[0], *outputs)]
    for pair in pairs:
        table = _Table([[replace(one, when=0, skip=0) for one in changes(*pair, 0)]])
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
    """For passes that do not know where answers begin: there `answer` would never act, and `prompt` everywhere.

    Raises:
        EmEvalsError: an intervention acts on prompts or answers only.
    """
    for one in interventions:
        if one.positions != "all":
            raise EmEvalsError(
                f"`{one.op}` with `positions: {one.positions}` cannot be read inside, where prompt and answer are not "
                "told apart: use a card whose interventions have `positions: all`."
            )


def scale_adapter(model: Any, name: str, scales: Sequence[Intervention]) -> None:
    """Multiply a PEFT adapter's output by each `scale_adapter`'s scale, in its blocks.

    Raises:
        EmEvalsError: one of its blocks carries no adapter.
    """
    for one in scales:
        touched = 0
        for layer, block in enumerate(decoder_layers(model)):
            for module in block.modules() if one.at(layer) else ():
                scaling = getattr(module, "scaling", None)
                if isinstance(scaling, dict) and name in scaling:  # an attention's own `scaling` is a number
                    scaling[name] *= one.scale
                    touched += 1
        if not touched:
            raise EmEvalsError(
                f"`scale_adapter` names layers {list(one.layers)}, and the adapter has none there."
            )
