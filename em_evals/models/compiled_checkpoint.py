"""A card as a plain checkpoint: its adapter merged, directions ablated from the weights, biases added."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from em_evals.content.cards import ModelCard
from em_evals.errors import EmEvalsError
from em_evals.models import bases, invariants
from em_evals.models.architecture import (
    decoder_layers,
    embeddings,
    feed_forwards,
    last_projections,
    write_gain,
)
from em_evals.models.changes import changes
from em_evals.models.interventions import Pair
from em_evals.models.lora.changes import Dora, LowRank, LowRankEmbedding, Offset, TokenRows
from em_evals.models.lora.parts import Parts


def write(
    model: Any,
    adapter: Parts | None,
    pairs: Sequence[Pair],
    card: ModelCard,
    folder: Path,
    ids: torch.Tensor,
    expected: torch.Tensor,
) -> torch.Tensor:
    """Change a model's weights and save it in the card's dtype, rounded once.

    Args:
        model: the base in float32; it is changed.
        adapter: what to merge.
        pairs: interventions at `site: writes`, and `add`s.
        card: names the dtype and the tokenizer.
        folder: where.
        ids: token ids to compare on.
        expected: the logits of the model with hooks there.

    Returns:
        The logits of the model that was saved, in float32.

    Raises:
        EmEvalsError: the architecture has no weights that do exactly this, or they do not give what is expected.
    """
    touched = adapter.modules if adapter is not None else set()
    removed = [one.unit for pair in pairs if pair[0].site == "writes" for one in changes(*pair, 0)]
    # Before anything is changed: a change to one of two tied matrices must not change the other.
    if removed or any(model.get_submodule(name) in _ends(model) for name in touched):
        untie(model)
    if adapter is not None:
        merge(model, adapter)
    if removed:
        remove(model, removed)
    for pair in pairs:
        if pair[0].op == "add":
            _add(model, pair)
    invariants.check_same(invariants.logits(model, ids), expected, "compiled")
    dtype = bases.choose_dtype(card.engine.dtype, bases.choose_device(card.engine.device))
    _round(model, dtype)
    rounded = invariants.logits(model, ids)
    model.to(dtype).save_pretrained(folder)
    bases.load_tokenizer(card).save_pretrained(folder)
    return rounded


def untie(model: Any) -> None:
    """Give the output matrix its own weights, so that ablating the embedding does not change it."""
    embedding, head = _ends(model)
    if head is not None and head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.config.get_text_config().tie_word_embeddings = False
    model.config.tie_word_embeddings = False


def merge(model: Any, adapter: Parts) -> None:
    """Merge an adapter into a model's weights.

    Args:
        model: the base that the adapter was loaded for, in float32; untied where the adapter changes a tied matrix.
        adapter: what it does (lora/parts.py).

    Raises:
        EmEvalsError: a module has no bias for what is added to it.
    """
    for name, weights in adapter.weights.items():
        for parameter, weight in weights.items():
            own = getattr(model.get_submodule(name), parameter)
            own.copy_(weight.of(own))
    for name, parts in adapter.changes.items():
        module = model.get_submodule(name)
        for part in parts:
            _merge(name, module, part)


def _merge(name: str, module: Any, change: Any) -> None:
    matrix = module.weight.T if isinstance(module, Conv1D) else module.weight
    bias: Any = getattr(module, "bias", None)
    if isinstance(change, LowRank):
        matrix += change.product
        if change.c is not None:
            if bias is None:
                raise EmEvalsError(
                    f"the adapter has `lora_bias` on {name}, which has no bias in this architecture: it cannot be "
                    "compiled."
                )
            bias += change.scaling * change.c
    elif isinstance(change, Dora):
        matrix.copy_(change.factor[:, None] * (matrix + change.low_rank.product))
    elif isinstance(change, LowRankEmbedding):
        matrix += change.product
        if change.factor is not None:
            matrix *= change.factor
    elif isinstance(change, Offset):
        bias += change.difference
    elif isinstance(change, TokenRows):
        matrix[change.indices] = change.rows
    else:
        raise EmEvalsError(
            f"the adapter changes {name} in a way that is not merged here; use the card as it is."
        )


def remove(model: Any, removed: Sequence[torch.Tensor]) -> None:
    """Ablate directions, one after the other, from every weight that writes into the stream.

    Raises:
        EmEvalsError: there is a norm between such a weight and the stream, or the weights are not known.
    """
    for unit in removed:
        for matrix, bias in _writers(model):
            u = unit.to(matrix.device)
            matrix -= u[:, None] * (u @ matrix).unsqueeze(-2)
            if bias is not None:
                bias -= (bias @ u).unsqueeze(-1) * u


def _writers(model: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Yield every matrix [..., stream, in] that writes into the stream with its bias [..., stream]; experts stacked."""
    for embedding in embeddings(model):
        yield embedding.weight.T, None
    for block in decoder_layers(model):
        for module in last_projections(block):
            if isinstance(module, torch.nn.Linear):
                yield module.weight, module.bias
            elif isinstance(module, Conv1D):
                yield module.weight.T, module.bias
            else:
                matrices = module.down_proj
                transposed = matrices.shape[1] != model.config.get_text_config().hidden_size
                transposed |= bool(getattr(module, "is_transposed", False))
                yield (
                    matrices.transpose(1, 2) if transposed else matrices,
                    getattr(module, "down_proj_bias", None),
                )


def _add(model: Any, pair: Pair) -> None:
    """Apply `add` as a bias of the blocks' last projections, divided by the block's gain on them."""
    for layer, block in enumerate(decoder_layers(model)):
        if not pair[0].at(layer):
            continue
        linear = last_projections(block)[-1]
        if not isinstance(linear, torch.nn.Linear | Conv1D):
            raise EmEvalsError(
                f"{type(block).__name__} ends in experts, and tokens use different ones: `add` cannot be compiled."
            )
        if linear.bias is None and feed_forwards(block):
            _admit_biases(model)
        if linear.bias is None:
            raise EmEvalsError(f"block {layer} has no bias in its last projection: `add` cannot be compiled.")
        (step,) = changes(*pair, layer)
        linear.bias += step.add.to(linear.bias.device) / write_gain(block)


def _admit_biases(model: Any) -> None:
    """Add zero biases to every MLP projection, where the architecture's config has a switch for them."""
    config = model.config.get_text_config()
    if not hasattr(config, "mlp_bias"):
        raise EmEvalsError(
            f"{config.model_type} has no biases in its MLPs, so `add` cannot be compiled; run it with an engine."
        )
    config.mlp_bias = True
    for block in decoder_layers(model):
        for linear in (module for part in feed_forwards(block) for module in part.modules()):
            if isinstance(linear, torch.nn.Linear) and linear.bias is None:
                linear.bias = torch.nn.Parameter(linear.weight.new_zeros(linear.out_features))


def _round(model: Any, dtype: torch.dtype) -> None:
    """Round the weights as saving in a dtype does, kept in float32. Buffers that are not saved stay unchanged."""
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data.copy_(tensor.data.to(dtype))


def _ends(model: Any) -> tuple[Any, Any]:
    return model.get_input_embeddings(), model.get_output_embeddings()
