"""Adapters beside a base in memory: applied by forward hooks, row by row. The base's weights are never changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from em_evals.errors import EmEvalsError
from em_evals.intervention import Intervention
from em_evals.models.architecture import unwrapped
from em_evals.models.lora import folders, skeleton, tensors
from em_evals.models.lora.changes import LowRank
from em_evals.models.lora.plan import Plan, plan
from em_evals.models.lora.rows import Assignment


@dataclass(frozen=True, eq=False)
class _Adapter:
    plan: Plan
    parts: Mapping[str, LowRank]


class Bank:
    """A model's adapters. Without rows that name one, nothing happens.

    Args:
        model: a causal language model of transformers, with its weights.
    """

    def __init__(self, model: Any) -> None:
        self._model = unwrapped(model)
        self._skeleton = skeleton.of(self._model)
        self._adapters: dict[str, _Adapter] = {}
        self._sites: dict[str, _Site] = {}
        self._numbers = itertools.count()
        self._rows: Assignment | None = None

    def load(self, source: str, scales: Sequence[Intervention] = ()) -> str:
        """Read an adapter and make it known.

        Args:
            source: its folder or hub id.
            scales: each `scale_adapter` that it is changed by.

        Returns:
            Its name, for `rows`.

        Raises:
            EmEvalsError: it does not fit this model exactly; nothing is changed then.
        """
        made = plan(folders.locate(source), self._skeleton)
        factors = _factors(made, scales, self._skeleton)
        with torch.inference_mode(False), torch.no_grad():
            adapter = _Adapter(made, self._parts(made, factors))
        name = f"adapter{next(self._numbers)}"
        self._adapters[name] = adapter
        for module, part in adapter.parts.items():
            if module not in self._sites:
                self._sites[module] = _Site(self, self._model.get_submodule(module))
            self._sites[module].changes[name] = part
        return name

    def drop(self, name: str) -> None:
        """Forget an adapter."""
        for module in self._adapters.pop(name).parts:
            site = self._sites[module]
            del site.changes[name]
            if not site.changes:
                site.handle.remove()
                del self._sites[module]

    def mixes(self, name: str) -> bool:
        """Whether rows of this adapter may share a batch with others. False: all rows must be its own."""
        return not any(self._skeleton.routed(module) for module in self._adapters[name].parts)

    def parts(self, name: str) -> Mapping[str, LowRank]:
        """An adapter's low-rank parts by the modules' names."""
        return self._adapters[name].parts

    @contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """Apply adapters to the forward passes inside the context.

        Args:
            names: one for each row, None for the base; a single one stands for all rows.

        Raises:
            EmEvalsError: an adapter that cannot share a batch does.
        """
        assignment = Assignment(names)
        for kind in assignment.kinds:
            if kind is not None and not assignment.uniform and not self.mixes(kind):
                raise EmEvalsError(f"rows of {kind} cannot share a batch with others.")
        before, self._rows = self._rows, None if assignment.kinds in ((), (None,)) else assignment
        try:
            yield
        finally:
            self._rows = before

    def _parts(self, made: Plan, factors: Mapping[str, float]) -> dict[str, LowRank]:
        keys = [key for piece in made.pieces for key in piece.keys.values()]
        values = tensors.load(made.folder / tensors.WEIGHTS, keys)
        parts = {}
        for piece in made.pieces:
            weight = self._model.get_submodule(piece.module).weight
            dtype = torch.promote_types(weight.dtype, torch.float32)
            a, b = (values[piece.keys[part]].to(weight.device, dtype) for part in ("A", "B"))
            parts[piece.module] = LowRank(a, b, piece.scaling * factors.get(piece.module, 1.0))
        return parts


class _Site:
    """One module's hook and what each adapter does there."""

    def __init__(self, bank: Bank, module: torch.nn.Module) -> None:
        self.changes: dict[str, LowRank] = {}
        self._bank = bank
        self.handle = module.register_forward_hook(self._hook)

    def _hook(self, module: torch.nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        rows = self._bank._rows
        if rows is None:
            return None
        inputs = arguments[0]
        if rows.uniform:
            change = self.changes.get(str(rows.kinds[0]))
            return None if change is None else change.apply(module, inputs, output)
        for kind, places in rows.places(inputs).items():
            if (change := self.changes.get(str(kind))) is not None:
                own = change.apply(module, inputs.index_select(0, places), output.index_select(0, places))
                output = output.index_copy(0, places, own)
        return output


def _factors(made: Plan, scales: Sequence[Intervention], base: skeleton.Skeleton) -> dict[str, float]:
    """What `scale_adapter` multiplies each module's part by.

    Raises:
        EmEvalsError: the adapter has nothing in the blocks that one names.
    """
    factors: dict[str, float] = {}
    for one in scales:
        touched = []
        for piece in made.pieces:
            block = base.block(piece.module)
            if block is not None and one.at(block):
                touched.append(piece.module)
        if not touched:
            raise EmEvalsError(
                f"`scale_adapter` names layers {list(one.layers)}, and the adapter has none there."
            )
        for module in touched:
            factors[module] = factors.get(module, 1.0) * one.scale
    return factors
