"""One tiny architecture with what its cells are compared with: plain transformers, PEFT, and hooks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tests import architectures
from tests.architectures.reference import logits

Says = Callable[[Sequence[int]], Any]
"""Logits [len, vocabulary] of one row, by plain means."""

FIRST = 8
"""The first token that is no special one."""

WIDTH = 64
_SIGHT = ("vision", "visual", "audio")
_MLP = ("mlp", "feed_forward", "ffn", "moe", "experts", "fc1", "fc2", "router", "laurel", "shared")
# PEFT refuses the first two (Mamba kernels read the weight itself), and takes AFMoE's gate of attention for an expert's.
_REFUSED = ("mixer.out_proj", "mamba.out_proj", "self_attn.gate_proj")


def tokens(count: int, seed: int) -> tuple[int, ...]:
    """Return so many ordinary tokens."""
    return tuple(map(int, np.random.default_rng(seed).integers(FIRST, architectures.VOCABULARY, count)))


def first_of(output: Any) -> Any:
    """The stream among what a module gives."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def hooked(modules: Sequence[Any], edit: Callable[[Any], Any]) -> Iterator[None]:
    """Let `edit` change what modules give, for a while."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


class Lab:
    """A saved model and everything that is made for it, each once.

    Args:
        name: of the catalogue.
        root: a folder for the model, its adapters and its directions.
    """

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root
        self.base = architectures.build(name, root / "base")
        self._adapted: dict[str, Any] = {}

    @cached_property
    def model(self) -> Any:
        """The model as a user of transformers loads it."""
        return architectures.load(self.base)

    @cached_property
    def text(self) -> Any:
        """The configuration of its text model."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def by_length(self) -> bool:
        """Whether a position's factors depend on the row's length: what was said at 20 tokens is not that at 30."""
        found = getattr(self.text, "rope_parameters", None) or {}
        sets = [one for one in found.values() if isinstance(one, dict)] or [found]
        return any(one.get("rope_type") in ("longrope", "dynamic") for one in sets)

    @property
    def limit(self) -> int:
        """Tokens that it reads at most."""
        return getattr(self.text, "max_position_embeddings", None) or 512

    # Plain answers

    def says(self, row: Sequence[int]) -> Any:
        """Logits of the bare model."""
        return logits(self.model, row)

    def adapted(self, folder: str) -> Says:
        """Logits under an adapter."""
        model = self.peft(folder)
        return lambda row: logits(model, row)

    def peft(self, folder: str) -> Any:
        """The model under an adapter, by PEFT alone: of the class whose names the adapter's tensors have."""
        if folder not in self._adapted:
            self._adapted[folder] = self._peft(folder)
        return self._adapted[folder]

    def _peft(self, folder: str) -> Any:
        import warnings

        from peft import PeftModel

        failed = []
        for made in (self.whole, lambda: architectures.load(self.base)):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                try:
                    model = PeftModel.from_pretrained(made(), folder).eval()
                except ValueError as error:  # none of the modules that its configuration names
                    failed = [str(error)]
                    continue
            if not (
                failed := [str(one.message) for one in said if "missing adapter keys" in str(one.message)]
            ):
                return model
        raise AssertionError(f"PEFT itself does not find the adapter's tensors: {failed[0][:200]}")

    def whole(self) -> Any:
        """The class that adapters in the world are made on: with its vision tower where there is one."""
        import torch
        from transformers import AutoModelForImageTextToText

        if hasattr(self.model.config, "vision_config") or self.composite:
            return AutoModelForImageTextToText.from_pretrained(self.base, dtype=torch.float32).eval()
        return architectures.load(self.base)

    @cached_property
    def tokenizer(self) -> Any:
        """As transformers loads it."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.base)

    # Where things are

    @property
    def composite(self) -> bool:
        """Whether the checkpoint holds a vision tower."""
        from transformers import AutoConfig

        return hasattr(AutoConfig.from_pretrained(self.base), "vision_config")

    @cached_property
    def blocks(self) -> Any:
        """The decoder blocks of `model`."""
        return blocks_of(self.model)

    @property
    def numbered(self) -> list[tuple[int, Any]]:
        """Blocks with their numbers."""
        return list(enumerate(self.blocks))

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def writers(self) -> list[Any]:
        """What is summed up in the stream, as read in the modelling files: the embeddings, and parts of each block."""
        places = dict(self.model.named_modules())
        normed = [place for place in places if place.endswith(".word_embeddings_layernorm")]  # BLOOM
        positions = [place for place in places if place.endswith((".wpe", ".embed_positions"))]
        found = [places[place] for place in normed] or [self.model.get_input_embeddings()]
        found += [places[place] for place in positions]
        for block in self.blocks:
            children = dict(block.named_children())
            after = [name for name in children if name in _AFTER]
            if (
                after
                and "post_self_attn_layernorm" not in children
                and "post_attention_layernorm" in children
            ):
                after.append("post_attention_layernorm")
            plain = [name for name in children if not any(mark in name for mark in _NO_WRITER)]
            # LongCat has lists of parts.
            parts = [children[name] for name in after or plain]
            found += [
                one for part in parts for one in (part if type(part).__name__ == "ModuleList" else [part])
            ]
        return found

    # Adapters

    def adapter(self, kind: str, seed: int = 1) -> str:
        """Return a LoRA with random halves: on `attention`, `mlp`, `experts`, or what stands for them here."""
        folder = self.root / kind
        if not folder.is_dir():
            _save_adapter(self.whole(), folder, kind, seed, self.base, self.composite)
        return str(folder)

    @cached_property
    def has_experts(self) -> bool:
        """Whether there are fused experts."""
        return bool(_experts(self.blocks))

    # Directions

    @cached_property
    def direction(self) -> str:
        """A direction file with another random vector for each block."""
        from em_evals.content import directions
        from em_evals.content.directions import Direction

        chance = np.random.default_rng(5)
        vectors, mean = (chance.normal(size=(self.depth, WIDTH)).astype(np.float32) for _ in range(2))
        path = self.root / "direction.safetensors"
        directions.write(Direction(vectors, mean, np.linspace(3, 5, self.depth).astype(np.float32)), path)
        return str(path)


_AFTER = (
    "post_self_attn_layernorm",
    "post_mlp_layernorm",
    "post_feedforward_layernorm",
    "post_per_layer_input_norm",
)
_NO_WRITER = (
    "norm",
    "ln",
    "act",
    "drop",
    "fc1",
    "per_layer",
    "router",
    "experts",
    "laurel",
    "altup",
    "rotary",
)


def blocks_of(model: Any) -> Any:
    """The decoder blocks of a model, whatever wraps it: the largest list of modules outside its vision tower."""
    from torch import nn

    found = [
        (name.count("."), -len(module), module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) > 1
        and not any(mark in name for mark in _SIGHT)
        and sum(parameter.numel() for parameter in module.parameters()) > 20000
    ]
    return min(found, key=lambda entry: entry[:2])[2]


def _experts(blocks: Any) -> list[str]:
    names = {
        name
        for block in blocks
        for name, parameter in block.named_parameters()
        if parameter.dim() == 3 and any(mark in name for mark in ("experts", "moe.", "mlp."))
    }
    return sorted(names)


def _linear(blocks: Any, mlp: bool) -> list[str]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    names = {
        name
        for block in blocks
        for name, module in block.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and "Router" not in type(module).__name__
        if any(mark in name for mark in _MLP) == mlp
    }
    return sorted(name for name in names if not name.endswith(_REFUSED))


def _save_adapter(model: Any, folder: Path, kind: str, seed: int, base: str, composite: bool) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    blocks = blocks_of(model)
    options: dict[str, Any] = {}
    names = _linear(blocks, mlp=kind == "mlp") or _linear(blocks, mlp=False)
    if kind == "experts":
        options["target_parameters"] = _experts(blocks)
        names = []
    targets: Any = names  # by the end of their names, as everybody writes them
    if composite and names:  # the vision tower has modules of the same names
        targets = rf".*language_model\..*layers\.\d+\.({'|'.join(map(re.escape, names))})"
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4 if kind == "attention" else 2,
        lora_alpha=8,
        target_modules=targets,
        init_lora_weights=False,
        **options,
    )
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(folder, save_embedding_layers=False)
