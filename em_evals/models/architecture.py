"""Where the parts of a transformers model are, whatever wraps it."""

from __future__ import annotations

import re
from typing import Any

import torch

from em_evals.errors import EmEvalsError

_OTHER_PARTS = re.compile(r"(?:^|\.)(?:vision|visual|audio|image|speech|video|mtp)[^.]*")
"""Parts of composite models that read no text."""
_BLOCKS = ("layers", "h", "blocks")
"""What a decoder calls the list of its blocks."""


def unwrapped(model: Any) -> Any:
    """The transformers model inside the wrappers of accelerate and PEFT."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder(model: Any) -> Any:
    """The text decoder: embeds token ids, runs the blocks, norms; computes no vocabulary.

    Composite models (vision, audio) have one inside.

    Raises:
        EmEvalsError: the blocks cannot be found, see `decoder_layers`.
    """
    return _decoder(unwrapped(model))[0]


def decoder_layers(model: Any) -> Any:
    """The text decoder's blocks, first to last.

    Raises:
        EmEvalsError: the architecture has no list of as many blocks as its configuration says.
    """
    return _decoder(unwrapped(model))[1]


def _decoder(plain: Any) -> tuple[Any, Any]:
    depth = plain.config.get_text_config().num_hidden_layers
    for place, owner in plain.named_modules():
        if not _OTHER_PARTS.search(place):
            for name in _BLOCKS:
                blocks = getattr(owner, name, None)
                if isinstance(blocks, torch.nn.ModuleList) and len(blocks) == depth:
                    return owner, blocks
    raise EmEvalsError(f"{plain.config.model_type} has no list of {depth} decoder blocks.")


def write_modules(model: Any) -> list[Any]:
    """The modules whose outputs are summed up in the residual stream: the embedding, each attention, each MLP.

    Where a norm stands between a sublayer and the stream (Gemma 2 and 3, OLMo 2), it is the norm that writes.

    Raises:
        EmEvalsError: the architecture names its parts otherwise.
    """
    modules = [unwrapped(model).get_input_embeddings()]
    for block in decoder_layers(model):
        if normed_writes(model):
            modules += [block.post_attention_layernorm, block.post_feedforward_layernorm]
        else:
            modules += _sublayers(block)
    return modules


def normed_writes(model: Any) -> bool:
    """Whether a norm stands between the sublayers and the stream."""
    return hasattr(decoder_layers(model)[0], "post_feedforward_layernorm")


def last_projections(block: Any) -> list[Any]:
    """The attention's and the MLP's last linear layer, in this order.

    Raises:
        EmEvalsError: the architecture names them otherwise.
    """
    found = []
    for part, names in zip(
        _sublayers(block), (("o_proj", "dense"), ("down_proj", "dense_4h_to_h")), strict=True
    ):
        name = next((name for name in names if hasattr(part, name)), None)
        if name is None:
            raise EmEvalsError(f"{type(part).__name__} has no last projection that is known by name.")
        found.append(getattr(part, name))
    return found


def _sublayers(block: Any) -> list[Any]:
    attention = next((name for name in ("self_attn", "attention") if hasattr(block, name)), None)
    if attention is None or not hasattr(block, "mlp"):
        raise EmEvalsError(
            f"{type(block).__name__}: it is not known which of its modules write into the residual stream."
        )
    return [getattr(block, attention), block.mlp]
