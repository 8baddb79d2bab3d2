"""Interventions by hand: the formulas of em_evals/content/intervention.py, written again for one row at a time.

Nothing here knows how the product finds blocks, batches rows or computes steps: blocks are those modules that are seen
to hand on the stream, in order, in a forward pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from em_evals.content import directions
from em_evals.content.intervention import Intervention
from em_evals.errors import EmEvalsError

Edit = Callable[[torch.Tensor], torch.Tensor]

_AFTER = re.compile(r"post_(?:self_attn|attention|mlp|feedforward|per_layer_input)_?(?:layer)?norm")
"""Norms behind a sublayer: what they give is what is added to the stream."""
_EMBEDDING_NORM = re.compile(r"word_embeddings_(?:layer)?norm")
"""A norm between the tokens' embedding and the stream (BLOOM)."""
_POSITIONS = re.compile(r"wpe|embed_positions")
"""Learned positions, added to the stream (GPT-2, OPT). Rotary ones, which write nothing, have other names."""
_INNER = ("norm", "ln", "act", "drop", "fc1", "per_layer", "router", "experts", "laurel", "altup", "rotary")
"""Parts of a block that add nothing to the stream themselves."""


def stream_of(output: Any) -> torch.Tensor:
    """The stream among what a block gives."""
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found


@contextmanager
def hooked(modules: Sequence[Any], edit: Edit) -> Iterator[None]:
    """Let `edit` change what modules give, for a while."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        changed = edit(stream_of(output))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def blocks_of(model: Any) -> list[Any]:
    """The decoder blocks of a model, first to last: the list of modules that a text's stream is seen to pass.

    Raises:
        EmEvalsError: there is no such list.
    """
    text = model.config.get_text_config()
    width = text.hidden_size
    # LongCat has as many blocks as `num_layers` says: its `num_hidden_layers` counts attentions, two in each.
    depth = text.num_layers if text.model_type == "longcat_flash" else text.num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == depth]
    seen: list[tuple[int, int]] = []

    def watch(number: int, place: int) -> Callable[..., None]:
        def hook(_: Any, __: Any, output: Any) -> None:
            stream = stream_of(output) if isinstance(output, tuple | torch.Tensor) else None
            if stream is not None and stream.shape[-1] == width:
                seen.append((number, place))

        return hook

    with ExitStack() as stack:
        for number, blocks in enumerate(lists):
            for place, block in enumerate(blocks):
                stack.callback(block.register_forward_hook(watch(number, place)).remove)
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    for number, blocks in enumerate(lists):
        if [place for other, place in seen if other == number] == list(range(depth)):
            return list(blocks)
    raise EmEvalsError(f"{text.model_type} has no list of {depth} blocks that hand on a stream of {width}.")


def writers_of(model: Any, blocks: Sequence[Any]) -> list[Any]:
    """What is added up in the stream: the embeddings, and of each block its sublayers, or the norms behind them."""
    found = _embeddings(model)
    for block in blocks:
        children = dict(block.named_children())
        after = [name for name in children if _AFTER.fullmatch(name)]
        # In most models the norm of this name stands before the MLP, and not behind the attention.
        if after == ["post_attention_layernorm"]:
            after = []
        elif "post_self_attn_layernorm" in after:
            after = [name for name in after if name != "post_attention_layernorm"]
        plain = [name for name in children if not any(part in name for part in _INNER)]
        parts = [children[name] for name in after or plain]
        found += [
            one for part in parts for one in (part if isinstance(part, torch.nn.ModuleList) else [part])
        ]
    return found


def _embeddings(model: Any) -> list[Any]:
    """What writes before the first block: the tokens' embedding or the norm behind it, and the positions' embedding."""
    tokens = model.get_input_embeddings()
    # Only beside the tokens' embedding: a vision tower has embeddings of the same names.
    owner = next(module for module in model.modules() if any(child is tokens for child in module.children()))
    beside = dict(owner.named_children())
    first = next((module for name, module in beside.items() if _EMBEDDING_NORM.fullmatch(name)), tokens)
    return [first, *(module for name, module in beside.items() if _POSITIONS.fullmatch(name))]


@contextmanager
def intervened(model: Any, blocks: Sequence[Any], ones: Sequence[Intervention], start: int) -> Iterator[None]:
    """A model with interventions, for a row whose answer begins at token `start`. `scale_adapter` is left to PEFT."""
    with ExitStack() as stack:
        for one in ones:
            if one.op == "scale_adapter":
                continue
            if one.site == "writes":
                edit = edit_of(one, 0, start)
                stack.enter_context(hooked(writers_of(model, blocks), edit))
                continue
            for layer, block in enumerate(blocks):
                if one.at(layer):
                    stack.enter_context(hooked([block], edit_of(one, layer, start)))
        yield


@dataclass(frozen=True, eq=False)
class Numbers:
    """What an intervention's directions say at a layer: vectors, units and base means [directions, width], a norm."""

    vectors: torch.Tensor
    units: torch.Tensor
    means: torch.Tensor
    norm: float

    def like(self, stream: torch.Tensor) -> Numbers:
        """The same in a stream's dtype, on its device."""
        return Numbers(self.vectors.to(stream), self.units.to(stream), self.means.to(stream), self.norm)


def edit_of(one: Intervention, layer: int, start: int) -> Edit:
    """What an intervention makes of the stream [..., tokens, width] after a block, for a row."""
    source = layer if one.from_layer is None else one.from_layer
    files = [directions.get(named) for named in one.directions]
    vectors = torch.from_numpy(np.stack([file.vectors[source] for file in files])).double()
    means = torch.from_numpy(np.stack([file.base_mean[source] for file in files])).double()
    units = torch.nn.functional.normalize(vectors, dim=-1)
    numbers = Numbers(vectors, units, means, float(files[0].mean_norm[source]))

    def edit(stream: torch.Tensor) -> torch.Tensor:
        h = stream.float() if stream.device.type == "mps" else stream.double()  # mps has no float64
        changed = h + FORMULAS[one.op](one, h, numbers.like(h))
        places = torch.arange(h.shape[-2], device=h.device)
        acts = places >= (1 if one.skip == "sink" else 0)
        if one.positions != "all":
            acts &= (places >= start) if one.positions == "answer" else (places < start)
        return torch.where(acts[:, None], changed, h).to(stream.dtype)

    return edit


Formula = Callable[[Intervention, torch.Tensor, Numbers], torch.Tensor]
FORMULAS: dict[str, Formula] = {}
"""What each op adds to the stream h, from its definition; shares nothing with models/changes.py."""


def formula(op: str) -> Callable[[Formula], Formula]:
    """Register an op's formula."""

    def register(compute: Formula) -> Formula:
        FORMULAS[op] = compute
        return compute

    return register


@formula("add")
def _add(one: Intervention, h: torch.Tensor, given: Numbers) -> torch.Tensor:
    return torch.as_tensor(one.scale * (given.norm * given.units[0] if one.relative else given.vectors[0]))


@formula("ablate")
def _ablate(one: Intervention, h: torch.Tensor, given: Numbers) -> torch.Tensor:
    # h - V⁺(V h - t): the nearest point to h whose coordinates along the directions are t.
    target = torch.zeros_like(given.units[:, 0])
    if one.reference == "mean":
        target = (given.means * given.units).sum(-1)
    back: torch.Tensor = torch.linalg.pinv(given.units, rtol=1e-3)
    return (target - h @ given.units.T) @ back.T


@formula("clamp")
def _clamp(one: Intervention, h: torch.Tensor, given: Numbers) -> torch.Tensor:
    return (one.value - h @ given.units[0])[..., None] * given.units[0]


@formula("cap")
def _cap(one: Intervention, h: torch.Tensor, given: Numbers) -> torch.Tensor:
    along = h @ given.units[0]
    # Only where h lies beyond the value.
    wanted = along.clamp(max=one.value) if one.bound == "upper" else along.clamp(min=one.value)
    return (wanted - along)[..., None] * given.units[0]
