"""Locate the parts of a transformers model, whatever wraps it."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from em_evals.content.base_shape import depth_of
from em_evals.errors import EmEvalsError

_OTHER_PARTS = re.compile(r"(?:^|\.)(?:vision|visual|audio|image|speech|video|mtp)[^.]*")
"""Parts of composite models that take no text."""
_BLOCKS = ("layers", "h", "blocks")
"""Names of a decoder's list of blocks."""


def unwrapped(model: Any) -> Any:
    """Return the transformers model inside the wrappers of accelerate and PEFT."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder(model: Any) -> Any:
    """Return the text decoder: it embeds token ids, runs the blocks and norms, and computes no logits.

    Composite models (vision, audio) contain one.

    Raises:
        EmEvalsError: the blocks cannot be found, see `decoder_layers`.
    """
    return _decoder(unwrapped(model))[0]


def decoder_layers(model: Any) -> Any:
    """Return the text decoder's blocks, first to last.

    Raises:
        EmEvalsError: the architecture has no list of as many blocks as its configuration gives.
    """
    return _decoder(unwrapped(model))[1]


def _decoder(plain: Any) -> tuple[Any, Any]:
    depth = depth_of(plain.config.get_text_config())
    for place, owner in plain.named_modules():
        if not _OTHER_PARTS.search(place):
            for name in _BLOCKS:
                blocks = getattr(owner, name, None)
                if isinstance(blocks, torch.nn.ModuleList) and len(blocks) == depth:
                    return owner, blocks
    raise EmEvalsError(f"{plain.config.model_type} has no list of {depth} decoder blocks.")


def write_modules(model: Any) -> list[Any]:
    """Return the modules whose outputs are summed in the residual stream: embeddings, each mixer, each feed-forward.

    Where a norm is between a part of a block and the stream (Gemma 2 to 4, OLMo 2, GLM-4), the norm's output is what
    is written. Found by name only: invariants.py proves on a forward pass that the list is complete.

    Raises:
        EmEvalsError: the architecture's parts have other names.
    """
    plain = unwrapped(model)
    owner, blocks = _decoder(plain)
    embedding = _present(owner, _NORMED_EMBEDDING) or [plain.get_input_embeddings()]
    modules = [*embedding, *_present(owner, _POSITIONS)]
    return [*modules, *(module for block in blocks for module in block_writes(block))]


def embeddings(model: Any) -> list[Any]:
    """Return the embeddings of tokens and positions whose rows are added to the stream.

    Raises:
        EmEvalsError: there is a norm between them and the stream.
    """
    plain = unwrapped(model)
    owner, _ = _decoder(plain)
    if _present(owner, _NORMED_EMBEDDING):
        raise EmEvalsError(f"{plain.config.model_type} has a norm between its embedding and the stream.")
    return [plain.get_input_embeddings(), *_present(owner, _POSITIONS)]


def block_writes(block: Any) -> list[Any]:
    """Return the modules of one decoder block that write into the stream, in the order of their names below.

    Raises:
        EmEvalsError: the architecture's parts have other names.
    """
    norms = _norms(block)
    return [*(norms or _parts(block)), *_present(block, _FURTHER)]


def last_projections(block: Any) -> list[Any]:
    """Return the modules of a block whose weights compute, as the last step, what is added to the stream.

    Linear layers (also transposed ones, as GPT-2 has them) and the experts of a mixture, whose matrices are one tensor.

    Raises:
        EmEvalsError: there is a norm between them and the stream, or they have other names.
    """
    if _norms(block) or _present(block, _FURTHER):
        raise EmEvalsError(
            f"{type(block).__name__} has a norm between its parts and the stream, so no weight computes "
            "what is written: this cannot be compiled, run the card with an engine."
        )
    return [module for part in _parts(block) for module in _last(part)]


def feed_forwards(block: Any) -> list[Any]:
    """Return the parts of a block that do not mix tokens."""
    return _listed(block, _FEEDS)


def write_gain(block: Any) -> float:
    """Return the factor between a block's last projection and what it adds to the stream (Granite)."""
    gain = float(getattr(block, "residual_multiplier", 1.0))
    return gain * float(getattr(getattr(block, "feed_forward", None), "down_multiplier", 1.0))


_POSITIONS = ("wpe", "embed_positions")
"""Position embeddings that are added to the token embeddings (GPT-2, OPT)."""
_NORMED_EMBEDDING = ("word_embeddings_layernorm",)
"""A norm of the embedding, whose output is what is written (BLOOM)."""
_MIXERS = ("self_attn", "attention", "attn", "self_attention", "linear_attn", "mamba", "conv", "mixer")
"""Names of a block's token-mixing parts: attention, linear attention, state-space layers, convolutions."""
_FEEDS = ("mlp", "feed_forward", "block_sparse_moe", "shared_mlp", "moe", "ffn", "fc2", "mlps")
"""Names of a block's other parts; LongCat's two attentions and `mlps` are lists."""
_NORMS = (
    (
        "post_self_attn_layernorm",
        "post_mlp_layernorm",
    ),  # GLM-4, whose post_attention_layernorm is not such a norm
    ("post_attention_layernorm", "post_feedforward_layernorm"),  # Gemma 2 to 4, OLMo 2 and 3, EXAONE 4
    ("post_attention_layernorm", "post_mlp_layernorm"),  # AFMoE
)
_FURTHER = ("post_per_layer_input_norm",)
"""Gemma 4 writes a third time in each block: the token's embedding for this layer."""
_LAST = (
    *("o_proj", "out_proj", "dense", "c_proj", "down_proj", "dense_4h_to_h", "fc2", "w2", "output_linear"),
    *("fc_out", "fc2_latent_proj"),
)
"""Names of a part's last projection."""
_INNER = ("experts", "shared_expert", "shared_experts", "shared_mlp", "attention")
"""Parts of a part whose outputs are summed: experts of a mixture; GPT-Neo nests its attention."""


def _present(owner: Any, names: tuple[str, ...]) -> list[Any]:
    found = (getattr(owner, name, None) for name in names)
    return [module for module in found if isinstance(module, torch.nn.Module)]


def _listed(block: Any, names: tuple[str, ...]) -> list[Any]:
    """Return the named parts that a block has; a list is replaced by its modules, since it is not called itself."""
    return [
        part
        for found in _present(block, names)
        for part in (found if isinstance(found, torch.nn.ModuleList) else [found])
    ]


def _parts(block: Any) -> list[Any]:
    mixers, feeds = _listed(block, _MIXERS), _listed(block, _FEEDS)
    # A block of Nemotron-H is a single mixer.
    if not mixers or not (feeds or hasattr(block, "mixer")):
        raise EmEvalsError(
            f"{type(block).__name__}: it is not known which of its modules write into the residual stream."
        )
    return [*mixers, *feeds]


def _norms(block: Any) -> list[Any]:
    """Return the norms between the parts and the stream; none in most architectures."""
    return next((found for names in _NORMS if len(found := _present(block, names)) == len(names)), [])


def _last(part: Any) -> list[Any]:
    if _linear(part) or isinstance(getattr(part, "down_proj", None), torch.nn.Parameter):
        return [part]
    inner = [module for one in _present(part, _INNER) for module in _last(one)]
    if not (found := [one for one in _present(part, _LAST) if _linear(one)][:1] or inner):
        raise EmEvalsError(f"{type(part).__name__} has no last projection with a known name.")
    return found


def _linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear | Conv1D)
