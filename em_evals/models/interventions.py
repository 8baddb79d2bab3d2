"""Interventions on the residual stream: one formula for every op, and hooks that apply it to a transformers model.

Every op at a layer is h + a + g·(t - h·u) u: `add` has a = scale·v and g = 0, `ablate` g = 1 and t = m·u, `clamp` g = 1
and t = value. So rows with different interventions share a batch without a branch: a set of interventions is a slot
in the layer's tables, a row names its slot, and slot 0 changes nothing. Arithmetic is float32; hooks are differentiable
in h, so that a training can go on through them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from em_evals import directions
from em_evals.directions import Direction
from em_evals.errors import EmEvalsError
from em_evals.intervention import Intervention
from em_evals.models.architecture import decoder_layers, unwrapped, write_modules

Pair = tuple[Intervention, Direction]

_WHEN = {"all": 0, "prompt": 1, "answer": 2}


@dataclass(frozen=True, eq=False)
class Change:
    """One intervention at one layer: h + add + gate·(target - h·unit)·unit, where `when` and `skip` allow it.

    Attributes:
        add: float32 [width].
        unit: float32 [width], of length 1 (or 0: the direction is 0 here).
        gate: 0 or 1.
        target: what h·unit becomes where the gate is 1.
        when: 0 all tokens, 1 the prompt's, 2 the answer's.
        skip: so many first tokens are left alone.
    """

    add: torch.Tensor
    unit: torch.Tensor
    gate: float
    target: float
    when: int
    skip: int


def change(intervention: Intervention, direction: Direction, layer: int) -> Change:
    """What an intervention does at a layer; see `Intervention` for the formulas."""
    source = layer if intervention.from_layer is None else intervention.from_layer
    vector = torch.from_numpy(direction.vectors[source]).float()
    unit = vector / vector.norm().clamp(min=torch.finfo(torch.float32).tiny)
    add, gate, target = torch.zeros_like(vector), 1.0, 0.0
    if intervention.op == "add":
        gate = 0.0
        norm = float(direction.mean_norm[source])
        add = intervention.scale * (norm * unit if intervention.relative else vector)
    elif intervention.op == "clamp":
        target = intervention.value
    elif intervention.reference == "mean":
        target = float(torch.from_numpy(direction.base_mean[source]).float() @ unit)
    return Change(add, unit, gate, target, _WHEN[intervention.positions], int(intervention.skip == "sink"))


def load(interventions: Sequence[Intervention], config: Any) -> list[Pair]:
    """Each intervention with its direction, checked against the model (`scale_adapter` has none and is left out).

    Args:
        interventions: what is to be done.
        config: the model's configuration, of transformers; weights need not be there.

    Raises:
        EmEvalsError: no such direction, or it was made for a model of another width or depth.
    """
    config = config.get_text_config()
    pairs = []
    for intervention in interventions:
        layers = () if intervention.layers == "all" else intervention.layers
        for layer in (*layers, *([] if intervention.from_layer is None else [intervention.from_layer])):
            if layer >= config.num_hidden_layers:
                raise EmEvalsError(
                    f"an intervention names layer {layer}; this model's are 0 to {config.num_hidden_layers - 1}."
                )
        if intervention.direction is None:
            continue
        path = directions.find(intervention.direction)
        direction = directions.read(path)
        directions.check_shape(path, direction, config.num_hidden_layers, config.hidden_size)
        pairs.append((intervention, direction))
    return pairs


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

    def edit(self, hidden: torch.Tensor, rows: Rows) -> torch.Tensor:
        """The changed stream, [rows, tokens, width], in its own dtype."""
        stream, slots = hidden.float(), rows.slots
        places = rows.positions
        if places is None:
            places = torch.arange(stream.shape[1], device=stream.device)[None]
        for k in range(self.steps):
            unit = self.unit[k][slots]
            along = self.target[k][slots][:, None] - (stream @ unit[..., None])[..., 0]
            push = (self.gate[k][slots][:, None] * along)[..., None] * unit[:, None] + self.add[k][slots][
                :, None
            ]
            stream = stream + push * self._reach(k, places, rows)[..., None]
        return stream.to(hidden.dtype)

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
        self._slots: dict[tuple[Any, ...], int] = {(): 0}
        self._blocks: list[_Table] = [_Table([[]]) for _ in decoder_layers(model)]
        self._writes = _Table([[]])
        self._rows: Rows | None = None
        self._handles: list[Any] = []
        self._hooked: set[str] = set()

    def slot(self, interventions: Sequence[Intervention]) -> int:
        """The slot of a set (its directions given as paths), registered on first use.

        Raises:
            EmEvalsError: a direction is missing, or does not fit the model.
        """
        wanted = tuple(one for one in interventions if one.op != "scale_adapter")
        # A direction that was written anew is another one.
        files = [Path(one.direction or "") for one in wanted]
        times = [file.stat().st_mtime_ns if file.is_file() else 0 for file in files]
        key = tuple(zip(wanted, times, strict=True))
        if key not in self._slots:
            self._slots[key] = self.register(load(wanted, self._model.config))
        return self._slots[key]

    def register(self, pairs: Sequence[Pair]) -> int:
        """A new slot for interventions whose directions are at hand; acts in the order of `pairs`."""
        at_blocks = [pair for pair in pairs if pair[0].site == "block"]
        at_writes = [pair for pair in pairs if pair[0].site == "writes"]
        if at_writes:
            self._hook_writes()
        if at_blocks:
            self._hook_blocks()
        for layer, table in enumerate(self._blocks):
            table.slots.append([change(*pair, layer) for pair in at_blocks if pair[0].at(layer)])
            table.build(self._width, self._device)
        self._writes.slots.append([change(*pair, 0) for pair in at_writes])
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

    def _hook(self, table: _Table) -> Any:
        def hook(module: torch.nn.Module, arguments: Any, output: Any) -> Any:
            if self._rows is None or not table.steps:
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            edited = table.edit(hidden, self._rows)
            return (edited, *output[1:]) if isinstance(output, tuple) else edited

        return hook


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
