"""A model's modules by name, kind and shape, without weights: what an adapter is matched with.

A skeleton is made from a loaded model, or from a configuration alone (on the meta device, in less than a second), so
that a card whose adapter does not fit is refused before any weight is downloaded.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import torch

from em_evals.errors import EmEvalsError
from em_evals.models import quantization
from em_evals.models.architecture import decoder, decoder_layers, unwrapped

Kind = Literal["linear", "transposed", "embedding", "convolution", "other"]
Shape = tuple[int, ...]

_CALLED = ("Norm", "Router", "Gate")
"""Parts of the class names of modules that are run by a call."""
_ROUTES = {"top_k_index", "router_indices"}
"""Arguments of experts that get all tokens and their routing."""


@dataclass(frozen=True)
class ModuleShape:
    """The kind and shapes of one module.

    Attributes:
        kind: `linear` and `embedding` as in torch, `transposed` the Conv1D of transformers (weight [in, out]).
        parameters: its own parameters' shapes, in the order of registration.
        buffers: its own persistent buffers' shapes.
        transposed_experts: whether 3-D parameters are [experts, in, out] (gpt-oss, Llama 4).
        own_forward: a subclass with a forward pass of its own (Falcon's linear modules, routers).
        takes_lora: whether PEFT can run a LoRA on it, as far as its kind determines that.
        name: its class's name.
        routes: experts that get all tokens in order, and distribute them themselves.
        quantized: its weight is packed; `parameters` has the shape of the matrix that it stands for.
    """

    kind: Kind
    parameters: Mapping[str, Shape]
    buffers: Mapping[str, Shape]
    transposed_experts: bool = False
    own_forward: bool = False
    takes_lora: bool = True
    name: str = ""
    routes: bool = False
    quantized: bool = False

    @property
    def is_called(self) -> bool:
        """Whether its parameters are read in its own forward pass only, on all tokens in order, judged by its class.

        A convolution's weight is often read by the mixer around it, and some experts see tokens sorted by expert.
        """
        if self.kind == "convolution":
            return False
        if self.kind == "other" and any(len(size) == 3 for size in self.parameters.values()):
            return self.routes or self.stacked
        return self.kind != "other" or any(word in self.name for word in _CALLED)

    @property
    def stacked(self) -> bool:
        """Whether it sees all tokens once for each of its experts."""
        return self.name == "Llama4TextExperts"

    @property
    def width(self) -> tuple[int, int]:
        """Features in and out; an embedding's vocabulary counts as in."""
        first, second = self.parameters["weight"]
        return (second, first) if self.kind == "linear" else (first, second)


@dataclass(frozen=True)
class Skeleton:
    """A model without its weights.

    Attributes:
        model_type: as in its configuration.
        modules: every module by its name.
        decoder: name of the text decoder, which holds the blocks.
        blocks: name of the list of its blocks.
        embedding: name of the input embedding.
        head: name of the output matrix; None without one.
        tied: whether the output matrix is the embedding's weight.
    """

    model_type: str
    modules: Mapping[str, ModuleShape]
    decoder: str
    blocks: str
    embedding: str
    head: str | None
    tied: bool

    def block(self, name: str) -> int | None:
        """Return the decoder block that a module is in; None outside the blocks."""
        if not name.startswith(f"{self.blocks}."):
            return None
        return int(name.removeprefix(f"{self.blocks}.").partition(".")[0])

    @cached_property
    def fused_experts(self) -> bool:
        """Whether experts are parameters of one module, as in transformers 5."""
        return any(len(shape.parameters.get("down_proj", ())) == 3 for shape in self.modules.values())

    @cached_property
    def has_experts(self) -> bool:
        """Whether it has experts of any kind."""
        return any("experts" in name.split(".") for name in self.modules)

    def is_text(self, name: str) -> bool:
        """Check whether a module is part of the text model: not of a vision or audio tower."""
        return name == self.head or name == self.decoder or name.startswith(f"{self.decoder}.")

    def contains(self, name: str) -> bool:
        """Check whether a module contains modules with parameters, which adapters may change."""
        return any(shape.parameters for inner, shape in self.modules.items() if inner.startswith(f"{name}."))

    def sees_part(self, name: str) -> bool:
        """Check whether a module may see only some tokens (a list of experts), or one row for all (positions)."""
        if self.modules[name].kind == "embedding" and name != self.embedding:
            return True
        return any(part.isdecimal() for part in name.removeprefix(f"{self.blocks}.").split(".")[1:])


def of(model: Any) -> Skeleton:
    """Return the skeleton of a causal language model of transformers."""
    plain = unwrapped(model)
    names = {id(module): name for name, module in plain.named_modules()}
    blocks = names[id(decoder_layers(plain))]
    embedding, head = plain.get_input_embeddings(), plain.get_output_embeddings()
    text = plain.config.get_text_config()
    # Qwen3-VL's text config has no such field; the whole model's has it.
    ties = getattr(text, "tie_word_embeddings", getattr(plain.config, "tie_word_embeddings", False))
    tied = head is not None and (head.weight is embedding.weight or (head.weight.is_meta and bool(ties)))
    return Skeleton(
        str(plain.config.model_type),
        {name: _shape(module) for name, module in plain.named_modules() if name},
        names[id(decoder(plain))],
        blocks,
        names[id(embedding)],
        names.get(id(head)),
        tied,
    )


def of_config(config: Any, named_class: bool = False) -> Skeleton:
    """Return the skeleton that a configuration of transformers describes; cached by content.

    Args:
        config: of a base.
        named_class: use the class that the checkpoint names (`architectures`), as vLLM does, not the one for text.

    Raises:
        EmEvalsError: transformers has no causal language model of this kind.
    """
    key = hashlib.sha256(f"{type(config)}{config.to_json_string(use_diff=False)}".encode()).hexdigest()
    return _of_config(key, _Hidden(config), named_class)


class _Hidden:
    """Hides the configuration from the cache's key."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hidden)


@lru_cache(maxsize=8)
def _of_config(key: str, hidden: _Hidden, named_class: bool) -> Skeleton:
    from em_evals.models.bases import LOADING

    config = hidden.config
    # A configuration whose class is a checkpoint's own code was loaded because the card allows it.
    trusted = type(config).__module__.startswith("transformers_modules")
    try:
        with LOADING, torch.device("meta"):
            model = _named(config) if named_class else None
            model = model or _maker(config).from_config(config, trust_remote_code=trusted)
    except (ValueError, ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EmEvalsError(
            f"no model that generates text can be made of {config.model_type} ({reason})."
        ) from None
    return of(model)


def _named(config: Any) -> Any:
    """Build a model of the class that a checkpoint names, where transformers has it."""
    import transformers

    name = next(iter(getattr(config, "architectures", None) or ()), "")
    found = getattr(transformers, str(name), None)
    return found._from_config(config) if found is not None and hasattr(found, "_from_config") else None


def _maker(config: Any) -> Any:
    """Return the class of transformers that loads such a model for text (as models/bases.py)."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

    makers = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)
    return next((maker for maker in makers if type(config) in maker._model_mapping), AutoModelForCausalLM)


def _shape(module: torch.nn.Module) -> ModuleShape:
    from transformers.pytorch_utils import Conv1D

    kinds: dict[type[torch.nn.Module], Kind] = {
        torch.nn.Linear: "linear",
        torch.nn.Embedding: "embedding",
        Conv1D: "transposed",
        torch.nn.Conv1d: "convolution",
        torch.nn.Conv2d: "convolution",
        torch.nn.Conv3d: "convolution",
    }
    own = next((cls for cls in kinds if isinstance(module, cls)), None)
    quantized = quantization.holds(module)
    own_forward = (
        own is torch.nn.Linear and type(module).forward is not torch.nn.Linear.forward and not quantized
    )
    persistent = (
        (name, buffer)
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    )
    return ModuleShape(
        kinds[own] if own is not None else "other",
        {name: _size(module, name, own, quantized) for name, own in module.named_parameters(recurse=False)},
        {name: tuple(buffer.shape) for name, buffer in persistent},
        bool(getattr(module, "is_transposed", False)),
        # An embedding that scales its output counts as one; PEFT scales what it adds in the same way.
        own_forward,
        not own_forward or _gives_tensor(module),
        type(module).__name__,
        own is None and not _ROUTES.isdisjoint(inspect.signature(type(module).forward).parameters),
        quantized,
    )


def _size(module: Any, name: str, parameter: torch.Tensor, quantized: bool) -> Shape:
    """Return a parameter's shape; a packed weight's is that of the matrix."""
    if quantized and name == "weight":
        return int(module.out_features), int(module.in_features)
    return tuple(parameter.shape)


def _gives_tensor(module: Any) -> bool:
    """Check whether a custom linear module returns one tensor, as PEFT needs; tried on a copy without weights."""
    shadow = copy.copy(module)
    shadow._parameters = {
        name: None if own is None else torch.empty_like(own, device="meta")
        for name, own in module._parameters.items()
    }
    try:
        output = type(module).forward(
            shadow, torch.empty(1, module.in_features, device="meta", dtype=module.weight.dtype)
        )
    except Exception:  # a custom class may raise anything on the meta device: PEFT is not known to run it
        return False
    return isinstance(output, torch.Tensor) and output.shape == (1, module.out_features)
