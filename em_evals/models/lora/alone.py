"""An adapter that is alone on its base, merged into copies of the weights that it changes.

What a LoRA adds to each module costs two thin products and a pass over the output for every step. While all rows are
one adapter's, W + scaling · B A replaces W during their forward passes, and nothing is added. The base's own weights
stay as they are: rows without an adapter, and callers between two passes, see them.

In float32 the sum is that of the unmerged adapter up to rounding (log-probabilities within 1e-4). In a lower precision
it is not: W + scaling · B A would be rounded to steps that a weak adapter does not reach. There, for anything but plain
LoRAs on linear modules, and where a block reads a weight past its module (Mamba), the adapter stays beside the base.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from em_evals.models.invariants import read_past
from em_evals.models.lora.changes import LowRank
from em_evals.models.lora.parts import Parts
from em_evals.models.memory import available, fits

WORTH_MERGING = 512
"""Tokens that an adapter computes alone before it is merged: merging costs as much as a few steps of a batch."""
_SHARE = 0.25
"""Of the free memory: what the copies may take at most."""


class Alone:
    """The copies of one adapter's weights. Nothing is merged until an adapter has computed enough tokens alone.

    Tokens are counted anew after each pause of the draws: the same draws, asked again, are computed as before, merged
    from the same token on.

    Args:
        model: the base, on a CPU or elsewhere; only modules on a CPU are merged.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._name: str | None = None
        self._tokens = 0
        self._copies: list[tuple[torch.nn.Module, torch.Tensor]] | None = None

    def saw(self, name: str, tokens: int) -> None:
        """Count tokens of passes with one adapter for all rows."""
        if name != self._name:
            self.forget()
            self._name = name
        self._tokens += tokens

    def rest(self) -> None:
        """Count from 0 again; copies are kept."""
        self._tokens = 0

    def forget(self) -> None:
        """Drop the copies: another adapter computes, or this one was removed."""
        self._name, self._tokens, self._copies = None, 0, None

    def ready(self, name: str, adapter: Parts) -> bool:
        """Return whether copies are there for an adapter; make them once that is worth it."""
        if name != self._name or self._tokens < WORTH_MERGING or torch.is_grad_enabled():
            return False
        if self._copies is None:
            self._copies = _copies(self._model, adapter)
        return bool(self._copies)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the copies in the place of the base's weights."""
        copies = self._copies or []
        before = [module._parameters["weight"] for module, _ in copies]
        try:
            for module, copy in copies:
                module._parameters["weight"] = copy  # type: ignore[assignment]
            yield
        finally:
            for (module, _), own in zip(copies, before, strict=True):
                module._parameters["weight"] = own


def _copies(model: Any, adapter: Parts) -> list[tuple[torch.nn.Module, torch.Tensor]]:
    """Return each module that an adapter changes with its merged weight; none where that is not exact or too large."""
    changes = {name: _only(adapter, name) for name in adapter.modules}
    modules = {name: model.get_submodule(name) for name in changes}
    if not all(change is not None and _plain(modules[name]) for name, change in changes.items()):
        return []
    need = sum(module.weight.nbytes for module in modules.values())
    if need > _SHARE * available() or read_past(model, modules):
        return []
    made: list[tuple[torch.nn.Module, torch.Tensor]] = []

    def merge() -> None:
        # Not inference tensors: whoever computes with gradients later must not find one.
        with torch.inference_mode(False), torch.no_grad():
            for name, change in changes.items():
                if change is not None:
                    weight = torch.addmm(modules[name].weight, change.b, change.a, alpha=change.scaling)
                    made.append((modules[name], weight))

    return made if fits(merge) else []


def _only(adapter: Parts, name: str) -> LowRank | None:
    """Return the one plain LoRA that an adapter has at a module; None if it does something else there."""
    changes = adapter.changes.get(name, ())
    change = changes[0] if len(changes) == 1 and name not in adapter.weights else None
    return change if isinstance(change, LowRank) and change.c is None else None


def _plain(module: torch.nn.Module) -> bool:
    """Check whether a module is a float32 matrix in this machine's memory, and its forward pass is torch's own."""
    weight = module._parameters.get("weight")
    return (
        type(module) is torch.nn.Linear
        and type(weight) is torch.nn.Parameter
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and not hasattr(module, "_hf_hook")
    )
