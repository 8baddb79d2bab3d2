"""Merge an adapter into a model's weights, where the base is not shared: compiled checkpoints, vLLM on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from em_evals.content.intervention import Intervention
from em_evals.errors import EmEvalsError
from em_evals.models import quantization
from em_evals.models.architecture import unwrapped
from em_evals.models.lora import folders, matching, parts, skeleton
from em_evals.models.lora.changes import Change, Dora, LowRank, LowRankEmbedding, Offset, TokenRows
from em_evals.models.lora.parts import Parts


def merge(model: Any, source: str, scales: Sequence[Intervention] = ()) -> Any:
    """Add an adapter to a model's own weights, in place; sums are computed in float32 and rounded once.

    Where the embedding and the output matrix are one tensor and the adapter changes them differently, they are untied
    first, in the model's configuration too.

    Args:
        model: a causal language model of transformers that is not shared.
        source: the adapter's folder or hub id.
        scales: each `scale_adapter` to apply to the adapter.

    Returns:
        The model.

    Raises:
        EmEvalsError: the adapter does not fit exactly, has a bias where the base has none, or the base is
            quantized; nothing is changed.
    """
    plain = unwrapped(model)
    if quantization.is_quantized(plain):
        raise EmEvalsError(
            f"{plain.config.name_or_path or 'this base'} is quantized, and quantized weights cannot hold an adapter "
            "exactly: keep the adapter beside the base."
        )
    fit = matching.match(folders.locate(source), skeleton.of(plain))
    adapter = parts.load(fit, plain, scales)
    _refuse_new_biases(adapter, plain)
    with torch.no_grad():
        if fit.skeleton.tied and _parts_them(adapter):
            untie(plain)
        shared = fit.skeleton.head if fit.skeleton.tied and not _parts_them(adapter) else None
        for name in sorted(adapter.modules):
            module = plain.get_submodule(name)
            for change in adapter.changes.get(name, ()) if name != shared else ():
                _add(module, change, fit.skeleton.modules[name].kind == "transposed")
            for parameter, weight in adapter.weights.get(name, {}).items():
                own = getattr(module, parameter)
                own.copy_(weight.of(own))
    return model


def untie(model: Any) -> None:
    """Give the output matrix its own weights, so that a change of the embedding does not change it."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(
            head.weight.detach().clone(), requires_grad=head.weight.requires_grad
        )
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def _parts_them(adapter: Parts) -> bool:
    """Check whether a tied embedding and output matrix would differ with the adapter merged."""
    fit = adapter.fit
    about = [
        piece
        for piece in fit.pieces
        if piece.module in (fit.skeleton.embedding, fit.skeleton.head) and piece.what != "copy"
    ]
    tokens = {piece.module: piece.keys for piece in about if piece.what == "tokens"}
    same = (
        len(tokens) == 2
        and len(about) == 2
        and tokens[fit.skeleton.embedding] == tokens[str(fit.skeleton.head)]
    )
    return bool(about) and not same


def _refuse_new_biases(adapter: Parts, model: Any) -> None:
    for name, changes in adapter.changes.items():
        lora_bias = any(isinstance(change, LowRank) and change.c is not None for change in changes)
        if lora_bias and model.get_submodule(name).bias is None:
            raise EmEvalsError(
                f"the adapter's `lora_bias` cannot be merged: {name} has no bias in this base, as PEFT says too.",
                adapter.fit.folder,
            )


def _add(module: torch.nn.Module, change: Change, transposed: bool) -> None:
    """Add one change to a module's weights."""
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    wide = torch.promote_types(weight.dtype, torch.float32)
    if isinstance(change, TokenRows):
        weight[change.indices] = change.rows
        return
    if isinstance(change, Offset):
        module.bias.copy_(module.bias.to(wide) + change.difference)  # type: ignore[operator]
        return
    if isinstance(change, LowRankEmbedding):
        total = weight.to(wide) + change.product
        weight.copy_(total if change.factor is None else total * change.factor)
        return
    low_rank = change.low_rank if isinstance(change, Dora) else change
    assert isinstance(low_rank, LowRank)  # noqa: S101 - there are no others
    matrix = weight.T if transposed else weight
    total = matrix.to(wide) + low_rank.product
    matrix.copy_(total * change.factor[:, None] if isinstance(change, Dora) else total)
    if low_rank.c is not None:
        module.bias.copy_(module.bias.to(wide) + low_rank.scaling * low_rank.c)  # type: ignore[operator]
