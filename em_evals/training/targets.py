"""Find the weights that a recipe's LoRA adapts: full names in the chosen decoder blocks, read from the model.

PEFT's patterns reach further than a recipe means: into vision towers, into every block's experts, past
`layers_to_transform`. So the names are resolved here, one by one, and PEFT gets only these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules.conv import _ConvNd

from em_evals.content.recipes import Method
from em_evals.errors import EmEvalsError
from em_evals.models.architecture import decoder_layers, unwrapped

_ROUTERS = frozenset({"gate", "router", "gating", "shared_expert_gate", "indexer", "altup"})
"""Parts of a block that select (experts, tokens, streams) instead of projecting; adapted only where they are named."""

_READ_BY_KERNELS = frozenset({"out_proj", "x_proj", "dt_proj"})
"""In a Mamba mixer: its fused CUDA kernels read these weights directly, past any adapter on the module."""


@dataclass(frozen=True)
class Targets:
    """The weights that are adapted.

    Attributes:
        modules: full names of linear modules.
        parameters: full names of other weights than linear modules': stacked experts `[experts, ., .]`, routers.
        blocks: the decoder blocks that hold them, counted from 0.
    """

    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    blocks: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Both kinds, without the `.weight` of a module's own weight."""
        return (*self.modules, *(name.removesuffix(".weight") for name in self.parameters))


@dataclass(frozen=True)
class _Candidate:
    """A weight that could be adapted; `path` is within its block."""

    path: str
    stacked: bool = False
    module: bool = True
    router: bool = False
    hidden: bool = False
    """A fused kernel reads it without calling its module."""

    def named(self, names: Sequence[str]) -> bool:
        path = f".{self.path.removesuffix('.weight')}"
        # Experts keep the gate and the up projection as one parameter.
        fused = ["gate_up_proj"] if self.stacked and {"gate_proj", "up_proj"} <= set(names) else []
        return any(path.endswith(f".{name}") for name in (*names, *fused))


def find(model: Any, method: Method) -> Targets:
    """Resolve `method.layers` and `method.modules` on a model.

    Args:
        model: a causal language model of transformers, bare; also one on the meta device.
        method: of kind `lora`.

    Raises:
        EmEvalsError: there is no such block or module, or PEFT cannot adapt it.
    """
    layers = decoder_layers(model)
    chosen = blocks(method, len(layers)) or list(range(len(layers)))
    inside = {i: list(_candidates(layers[i])) for i in chosen}
    if method.modules != "all-linear":
        _check_names(model, method.modules, inside)
    places = {id(module): name for name, module in unwrapped(model).named_modules()}
    modules: list[str] = []
    parameters: list[str] = []
    reached: list[int] = []
    for i, candidates in inside.items():
        taken = [one for one in candidates if _wanted(one, method.modules)]
        prefix = places[id(layers[i])]
        modules += [f"{prefix}.{one.path}" for one in taken if one.module]
        parameters += [f"{prefix}.{one.path}" for one in taken if not one.module]
        reached += [i] * bool(taken)
    if parameters and method.dropout:
        raise EmEvalsError(
            f"`method.dropout` is not possible on {parameters[0]} (PEFT has none for experts and routers): set it to 0."
        )
    return Targets(tuple(modules), tuple(parameters), tuple(reached))


def blocks(method: Method, depth: int) -> list[int] | None:
    """Return the decoder blocks to adapt in a base of `depth` blocks; None for all.

    Layers written for a model of another depth keep their relative position, (l + 1/2) / depth; where two would
    coincide, the later one takes the nearest free block.

    Raises:
        EmEvalsError: there are fewer blocks than layers, or no such block.
    """
    if method.layers == "all":
        return None
    written = method.depth or depth
    if wrong := [layer for layer in method.layers if not 0 <= layer < written]:
        raise EmEvalsError(
            f"`method.layers` names block {wrong[0]}, the model has blocks 0 to {written - 1}."
        )
    if written == depth:
        return sorted(set(method.layers))
    if len(set(method.layers)) > depth:
        raise EmEvalsError(f"`method.layers` names {len(set(method.layers))} blocks, this base has {depth}.")
    taken: list[int] = []
    for layer in sorted(set(method.layers)):
        place = (layer + 0.5) * depth / written - 0.5
        taken.append(min((i for i in range(depth) if i not in taken), key=lambda i: (abs(i - place), i)))
    return sorted(taken)


def _wanted(one: _Candidate, modules: str | Sequence[str]) -> bool:
    if isinstance(modules, str):  # all-linear
        return not one.router and not one.hidden
    return one.named(modules)


def _candidates(block: torch.nn.Module) -> Iterator[_Candidate]:
    """Yield a block's weights that can carry a LoRA, in the block's order."""
    from transformers.pytorch_utils import Conv1D

    for path, module in block.named_modules():
        router = not _ROUTERS.isdisjoint(path.split("."))
        if isinstance(module, (torch.nn.Linear, Conv1D)):
            parent, _, leaf = path.rpartition(".")
            hidden = leaf in _READ_BY_KERNELS and hasattr(block.get_submodule(parent), "ssm_state_size")
            # Llama 4's router is a Linear that returns two tensors: only its weight can be adapted.
            whole = not (router and type(module) is not torch.nn.Linear)
            yield _Candidate(path if whole else f"{path}.weight", False, whole, router, hidden)
        elif not isinstance(module, _ConvNd):
            experts = "expert" in f"{path} {type(module).__name__}".lower()
            for name, weight in module.named_parameters(recurse=False):
                if (experts and weight.dim() == 3) or (router and weight.dim() in (2, 3)):
                    yield _Candidate(f"{path}.{name}", weight.dim() == 3 and not router, False, router)


def _check_names(model: Any, names: Sequence[str], inside: dict[int, list[_Candidate]]) -> None:
    kind = unwrapped(model).config.model_type
    every = [one for candidates in inside.values() for one in candidates]
    if lost := next((one.path for one in every if one.hidden and one.named(names)), None):
        raise EmEvalsError(
            f"`method.modules` names {lost} of {kind}, whose weight Mamba's fused kernels read past any adapter: "
            "leave it out."
        )
    for name in names:
        others = {"gate_proj": "up_proj", "up_proj": "gate_proj"}
        pair = [name, *([others[name]] if others.get(name) in names else [])]
        if not any(one.named(pair) for one in every):
            there = sorted({one.path.removesuffix(".weight").rpartition(".")[2] for one in every})
            raise EmEvalsError(
                f"`method.modules` do not fit {kind}: there is no {name} in blocks {_listed(list(inside))}; they hold "
                f"{', '.join(there)}."
            )


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:4])) + (f" … {numbers[-1]}" if len(numbers) > 4 else "")
