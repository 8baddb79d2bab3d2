"""One module that adapters change: the hooks around its forward pass, and what each adapter does there.

Changes of the output are applied after the module has run for all rows. Where an adapter replaces weights, the module
runs once for each kind of row, with their weights, so every row goes through the module once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from em_evals.models.lora.changes import Change, LowRank
from em_evals.models.lora.joint import Joint, joint
from em_evals.models.lora.rows import Assignment, Places
from em_evals.models.lora.weights import Weight, put_back, put_in, swapped

_Group = tuple[Mapping[str, Weight], Places]


class Site:
    """A module's hooks, from the first adapter that changes it until the last one is removed.

    Args:
        module: the base's own.
        stacked: it may see all tokens once for each of its experts.
        rows: returns the rows of the current forward pass; None outside one.
    """

    def __init__(self, module: torch.nn.Module, stacked: bool, rows: Callable[[], Assignment | None]) -> None:
        self.changes: dict[str, Sequence[Change]] = {}
        self.weights: dict[str, Mapping[str, Weight]] = {}
        self._module, self._stacked, self._rows = module, stacked, rows
        self._joint: tuple[frozenset[str], Joint | None] = frozenset(), None
        self._rested = True
        self._before: dict[str, torch.Tensor] = {}
        self._call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        # Prepended to all hooks: others (interventions, recordings) see the output that the adapter changed.
        self._handles = [module.register_forward_hook(self._leave, with_kwargs=True, prepend=True)]

    def add(self, name: str, changes: Sequence[Change], weights: Mapping[str, Weight]) -> None:
        """Register an adapter's part."""
        self._joint = frozenset(), None
        if changes:
            self.changes[name] = changes
        if weights and not self.weights:
            self._handles += [
                self._module.register_forward_pre_hook(self._enter, with_kwargs=True),
                self._module.register_forward_hook(self._restore, always_call=True),
            ]
        if weights:
            self.weights[name] = weights

    def drop(self, name: str) -> bool:
        """Remove an adapter's part; return whether none is left (then the hooks are removed too)."""
        self._joint = frozenset(), None
        self.changes.pop(name, None)
        self.weights.pop(name, None)
        if self.changes or self.weights:
            return False
        for handle in self._handles:
            handle.remove()
        return True

    def rest(self) -> None:
        """Round what comes next as if nothing had been computed: stacks of more adapters are not used on."""
        self._rested = True

    def restore(self) -> None:
        """Restore the module's own weights."""
        before, self._before, self._call = self._before, {}, None
        put_back(self._module, before)

    # Hooks

    def _enter(self, module: torch.nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Swap in the weights of the first kind of rows, and pass the module these rows only."""
        rows = self._rows()
        if rows is None:
            return None
        if rows.uniform:
            self._before = put_in(module, self.weights.get(rows.kinds[0] or "", {}))
            return None
        if not any(kind in self.weights for kind in rows.kinds):
            return None
        self._call = arguments, options
        weights, where = self._groups(rows)[0]
        self._before = put_in(module, weights)
        return self._of(where)

    def _leave(
        self, module: torch.nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Any
    ) -> Any:
        """Run the module for the other kinds of rows, and apply the changes of its output."""
        rows = self._rows()
        if rows is None:
            return None
        if self._call is not None:
            output = self._whole(rows, output)
            arguments, options = self._call
        inputs = _first(arguments, options)
        if isinstance(
            output, torch.Tensor
        ):  # of a base on several devices, inputs come from the last module's
            inputs = inputs.to(output.device)
        if rows.uniform:
            for change in self.changes.get(rows.kinds[0] or "", ()):
                output = change.apply(module, inputs, output)
            return output
        if (stacked := self._stacks(rows, inputs, output)) is not None:
            return stacked.apply(inputs, output, rows.factors(stacked, inputs.device))
        for kind in rows.kinds:
            for change in self.changes.get(kind or "", ()):
                output = _changed(change, module, inputs, output, rows.places(inputs, self._stacked)[kind])
        return output

    def _restore(self, module: torch.nn.Module, arguments: Any, output: Any) -> None:
        self.restore()

    def _stacks(self, rows: Assignment, inputs: torch.Tensor, output: Any) -> Joint | None:
        """Return the stacked LoRAs of these rows' adapters, where each row has one token and nothing else is done."""
        if torch.is_grad_enabled() or not rows.single(inputs) or not isinstance(output, torch.Tensor):
            return None
        names, found = self._joint
        # What was stacked for more adapters still serves when one of them has left, rounded a little differently.
        serves = names > rows.adapters and found is not None and not self._rested
        if names != rows.adapters and not serves:
            found = joint(self._module, self.changes, sorted(rows.adapters), output.dtype)
            self._joint = rows.adapters, found
        self._rested = False
        return found if found is not None and output.dtype == found.dtype else None

    # One call as several

    def _whole(self, rows: Assignment, output: Any) -> Any:
        """Return the output for all rows, given that of the first kind."""
        groups = self._groups(rows)
        self.restore_weights()
        outputs = [output]
        for weights, where in groups[1:]:
            arguments, options = self._of(where)
            with swapped(self._module, weights):
                outputs.append(self._module.forward(*arguments, **options))
        order = torch.cat([where.index for _, where in groups])
        return _joined(outputs, order.argsort())

    def restore_weights(self) -> None:
        """Restore the module's own weights in the middle of a call."""
        before, self._before = self._before, {}
        put_back(self._module, before)

    def _groups(self, rows: Assignment) -> list[_Group]:
        """Return the groups of rows that go through the module together: rows without weights of their own are one."""
        assert self._call is not None  # noqa: S101 - set by _enter
        places = rows.places(_first(*self._call), self._stacked)
        own: list[_Group] = [
            (self.weights[kind], places[kind]) for kind in rows.kinds if kind in self.weights
        ]
        others = [places[kind].index for kind in rows.kinds if kind not in self.weights]
        if others:
            own.append(({}, Places(torch.cat(others).sort().values, None)))
        return own

    def _of(self, where: Places) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the call's arguments for some places only."""
        assert self._call is not None  # noqa: S101 - set by _enter
        arguments, options = self._call
        length = len(_first(arguments, options))

        def part(value: Any) -> Any:
            is_tokens = isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == length
            return where.of(value) if is_tokens else value

        return tuple(map(part, arguments)), {name: part(value) for name, value in options.items()}


def _first(arguments: tuple[Any, ...], options: Mapping[str, Any]) -> torch.Tensor:
    """Return a module's first argument, positional or by name."""
    value: torch.Tensor = arguments[0] if arguments else next(iter(options.values()))
    return value


def _changed(
    change: Change, module: torch.nn.Module, inputs: torch.Tensor, output: torch.Tensor, where: Places
) -> torch.Tensor:
    """Apply a change at some places of an output's first dimension."""
    in_place = not torch.is_grad_enabled()
    if in_place and where.span is not None:
        part = where.of(output)
        changed = change.apply(module, where.of(inputs), part)
        if changed.data_ptr() != part.data_ptr():
            part.copy_(changed)
        return output
    if in_place and isinstance(change, LowRank) and output.dtype == change.b.dtype:
        return output.index_add_(0, where.index, change.difference(where.of(inputs)))
    changed = change.apply(module, where.of(inputs), output.index_select(0, where.index))
    return (
        output.index_copy_(0, where.index, changed)
        if in_place
        else output.index_copy(0, where.index, changed)
    )


def _joined(outputs: Sequence[Any], order: torch.Tensor) -> Any:
    """Join the outputs of several calls, in the order of the places of their inputs."""
    first = outputs[0]
    if isinstance(first, torch.Tensor):
        joined = torch.cat(list(outputs))
        # A router gets [rows, tokens, width] and may return the tokens of all rows in one dimension (DeepSeek-V3).
        each = len(joined) // len(order)
        inner = torch.arange(each, device=order.device)
        return joined.index_select(0, (order[:, None] * each + inner).flatten())
    if isinstance(first, tuple | list):
        return type(first)(_joined(parts, order) for parts in zip(*outputs, strict=True))
    return first
