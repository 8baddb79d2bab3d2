"""Load a fit's tensors and convert them to the form that hooks and merging use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from em_evals.content.intervention import Intervention
from em_evals.errors import EmEvalsError
from em_evals.models.invariants import read_past
from em_evals.models.lora import tensors
from em_evals.models.lora.changes import Change, Dora, LowRank, LowRankEmbedding, Offset, TokenRows
from em_evals.models.lora.fit import Fit, Piece
from em_evals.models.lora.initial import converted
from em_evals.models.lora.weights import Own, Product, Weight, factors
from em_evals.models.placement import device_of

Values = Mapping[str, torch.Tensor]


@dataclass(eq=False)
class Parts:
    """What an adapter does, by module name.

    Attributes:
        fit: the fit that it was loaded for.
        changes: changes of a module's output, in order.
        weights: values that replace a module's parameters.
        held: modules whose weights are replaced for a whole pass, since they are read outside of their own calls.
    """

    fit: Fit
    changes: dict[str, list[Change]] = field(default_factory=dict)
    weights: dict[str, dict[str, Weight]] = field(default_factory=dict)
    held: frozenset[str] = frozenset()

    @property
    def modules(self) -> set[str]:
        """Every module that the adapter changes."""
        return {*self.changes, *self.weights}

    @property
    def low_ranks(self) -> dict[str, LowRank]:
        """The plain LoRAs on linear modules."""
        return {
            name: change
            for name, changes in self.changes.items()
            for change in changes
            if isinstance(change, LowRank) and change.c is None
        }


def load(fit: Fit, model: Any, scales: Sequence[Intervention] = ()) -> Parts:
    """Load an adapter's tensors.

    Args:
        fit: made for this model.
        model: with its weights, which are only read.
        scales: each `scale_adapter`.

    Raises:
        EmEvalsError: a tensor is not finite, a scale has nothing to act on, or a copy of the base's weights differs.
    """
    multipliers = fit.factors(scales)
    keys = dict.fromkeys(key for piece in fit.pieces for key in piece.keys.values())
    # Not inference tensors, wherever this is called: they may be used with autograd later.
    with torch.inference_mode(False), torch.no_grad():
        values = tensors.load(fit.folder / tensors.WEIGHTS, keys)
        parts = Parts(fit, held=_held(fit, model))
        for piece in fit.pieces:
            module = model.get_submodule(piece.module)
            _refuse_absent(fit, piece, module)
            _Conversion(parts, piece, module, values, multipliers.get(piece.module, 1.0)).make()
    return parts


def _held(fit: Fit, model: Any) -> frozenset[str]:
    """Return the modules whose weights are replaced for a whole pass."""
    called = {piece.module: fit.skeleton.modules[piece.module].is_called for piece in fit.pieces}
    # PEFT puts a saved module and a bias into the model itself; a LoRA on a parameter acts in the module's call alone.
    whole = {piece.module for piece in fit.pieces if piece.what in ("saved", "bias") and called[piece.module]}
    return frozenset(name for name in called if not called[name]) | read_past(model, whole)


def _refuse_absent(fit: Fit, piece: Piece, module: Any) -> None:
    """Refuse what needs the values of a weight that is quantized or offloaded, where a plain LoRA needs none.

    Raises:
        EmEvalsError: names the module.
    """
    shape, converted = fit.skeleton.modules[piece.module], fit.config.converted
    quantized = shape.quantized and piece.what != "bias"
    offloaded = any(weight.is_meta for weight in module.parameters(recurse=False))
    plain = piece.what in ("low_rank", "embedding") and "magnitude" not in piece.keys and not converted
    if plain or not (quantized or offloaded):
        return
    what = f"`init_lora_weights: {converted}`" if converted else piece.words
    why, instead = (
        ("quantized", "the 16-bit base") if quantized else ("offloaded", "a base that fits its devices")
    )
    raise EmEvalsError(
        f"the adapter has {what}, which needs the weight of {piece.module}, and this base's is {why}: use {instead}.",
        fit.folder,
    )


class _Conversion:
    """Converts one piece."""

    def __init__(self, parts: Parts, piece: Piece, module: Any, values: Values, multiplier: float) -> None:
        self._parts, self._piece, self._module = parts, piece, module
        self._values = values
        self._scaling = piece.scaling * multiplier

    def make(self) -> None:
        {
            "low_rank": self._low_rank,
            "embedding": self._embedding,
            "parameter": self._parameter,
            "bias": self._bias,
            "saved": self._saved,
            "tokens": self._tokens,
            "copy": self._check_copy,
        }[self._piece.what]()

    def _get(self, part: str) -> torch.Tensor:
        """Return a tensor on the module's device, in float32, or float64 where the base is."""
        weight = self._own(self._piece.parameter or "weight")
        return self._values[self._piece.keys[part]].to(
            self._device, torch.promote_types(weight.dtype, torch.float32)
        )

    @cached_property
    def _device(self) -> torch.device:
        """Where the module computes: its weights may be offloaded."""
        return device_of(self._module)

    def _own(self, name: str) -> torch.Tensor:
        value: torch.Tensor = getattr(self._module, name)
        return value

    def _change(self, change: Change) -> None:
        self._parts.changes.setdefault(self._piece.module, []).append(change)

    def _weight(self, weight: Weight) -> None:
        self._parts.weights.setdefault(self._piece.module, {})[self._piece.parameter] = weight

    # Kinds

    def _low_rank(self) -> None:
        config, piece = self._parts.fit.config, self._piece
        transposed = self._parts.fit.skeleton.modules[piece.module].kind == "transposed"
        c = self._get("B.bias") if "B.bias" in piece.keys else None
        low_rank = LowRank(self._get("A"), self._get("B"), self._scaling, c)
        if config.converted:
            alpha = piece.scaling * (piece.rank**0.5 if config.use_rslora else piece.rank)
            low_rank = converted(
                low_rank, self._module, config.converted, alpha, config.use_rslora, transposed
            )
        if "magnitude" not in piece.keys:
            return self._change(low_rank)
        base = self._own("weight").to(low_rank.a.dtype)
        norm = torch.linalg.norm((base.T if transposed else base) + low_rank.product, dim=1)
        return self._change(Dora(low_rank, self._get("magnitude") / norm))

    def _embedding(self) -> None:
        a, b = self._get("embedding_A"), self._get("embedding_B")
        change = LowRankEmbedding(a, b, self._scaling)
        if "magnitude" in self._piece.keys:
            norm = torch.linalg.norm(self._own("weight").to(a.dtype) + change.product, dim=0)
            change = LowRankEmbedding(a, b, self._scaling, self._get("magnitude") / norm)
        self._change(change)

    def _parameter(self) -> None:
        base = self._own(self._piece.parameter)
        shape = self._parts.fit.skeleton.modules[self._piece.module]
        if "A" in self._piece.keys:
            pair = factors(self._get("A"), self._get("B"), base.shape, shape.transposed_experts)
        else:
            pair = self._lone_experts(len(base))
        left, right = (factor.to(base.dtype) for factor in pair)
        self._weight(Product(left, right, self._scaling))

    def _lone_experts(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Stack separate experts: gate and up are blocks of one product."""
        branches = list(dict.fromkeys(key.split(".")[2] for key in self._piece.keys))
        lefts, rights = [], []
        for expert in range(count):
            lefts.append(torch.block_diag(*[self._get(f"B.{expert}.{branch}") for branch in branches]))
            rights.append(torch.cat([self._get(f"A.{expert}.{branch}") for branch in branches]))
        return torch.stack(lefts), torch.stack(rights)

    def _bias(self) -> None:
        own, wanted = self._own("bias"), self._values[self._piece.keys["=bias"]]
        shape = self._parts.fit.skeleton.modules[self._piece.module]
        hooks = shape.kind in ("linear", "transposed") and not shape.own_forward
        if hooks and self._piece.module not in self._parts.held:
            value = wanted.to(self._device, own.dtype)  # rounded, as where PEFT puts it into the base
            dtype = torch.promote_types(own.dtype, torch.float32)
            self._change(Offset(value.to(dtype) - own.to(dtype)))
        else:
            self._weight(Own(wanted.to(self._device, own.dtype)))

    def _saved(self) -> None:
        own = self._own(self._piece.parameter)
        self._weight(
            Own(self._values[self._piece.keys[f"={self._piece.parameter}"]].to(self._device, own.dtype))
        )

    def _tokens(self) -> None:
        weight, indices = self._own("weight"), torch.tensor(self._piece.indices)
        place = torch.full((len(weight),), -1)
        place[indices] = torch.arange(len(indices))
        rows = self._values[self._piece.keys["tokens"]].to(self._device, weight.dtype)
        self._change(TokenRows(rows, indices.to(self._device), place.to(self._device)))

    def _check_copy(self) -> None:
        own = self._own("weight")
        key = self._piece.keys["=weight"]
        if not torch.equal(self._values[key].to(own.device, own.dtype), own):
            raise EmEvalsError(
                f"the adapter brings weights of {self._piece.module} ({key}) that are not this base's: it was trained "
                "on another base, or on one whose vocabulary was resized.",
                self._parts.fit.folder,
            )
