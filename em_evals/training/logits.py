"""Logits of a causal language model at chosen positions only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from em_evals.models.architecture import unwrapped
from em_evals.training import grouping, packing


def answer_logits(
    model: Any, ids: torch.Tensor, lengths: torch.Tensor, labelled: torch.Tensor
) -> torch.Tensor:
    """Compute logits where a label is predicted: position i predicts token i + 1.

    Each row gets the logits that it gets alone (grouping.py). Rows are packed where the model supports that. Elsewhere
    they stay padded on the right, without a mask: nothing before the padding can see it, whether the model attends,
    convolves or recurs, and causal attention is faster than masked attention.

    Args:
        model: a causal language model, bare, inside PEFT, or inside a wrapper for several processes.
        ids: [rows, tokens], padded on the right.
        lengths: [rows] tokens of each row.
        labelled: bool [rows, tokens - 1].

    Returns:
        float32 [labelled positions, vocabulary], row by row.
    """
    config = unwrapped(model).config.get_text_config()
    found: list[torch.Tensor | None] = [None] * len(ids)
    for rows, *part in grouping.split(config, ids, lengths, labelled):
        if grouping.remembers(config):
            grouping.forget(model)
        logits = _together(model, *part)
        if len(rows) == len(ids):
            return logits
        counts = part[2].sum(1).tolist()
        for row, own in zip(rows, logits.split(counts), strict=True):
            found[row] = own
    return torch.cat([own for own in found if own is not None])


def _together(model: Any, ids: torch.Tensor, lengths: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """Compute the logits of rows that may share a forward pass."""
    plain = unwrapped(model)
    takes_lines = plain.config.get_text_config()._attn_implementation == packing.NAME
    line = packing.pack(ids, lengths, labelled) if takes_lines else None
    if line is None:
        with _at(plain.get_output_embeddings(), lambda hidden: hidden[:, :-1][labelled]):
            return model(input_ids=ids, use_cache=False).logits.float()
    with _at(plain.get_output_embeddings(), lambda hidden: hidden[0].index_select(0, line.places)):
        found = model(input_ids=line.ids, position_ids=line.positions, packing=line.packing, use_cache=False)
    return found.logits.float()


@contextmanager
def _at(head: torch.nn.Module, select: Any) -> Iterator[None]:
    """Pass to the output embedding only the hidden states that predict a label.

    A hook on the embedding, so that whatever the model does around it (soft caps, scales) is still done, and the
    call goes through every wrapper.
    """
    handle = head.register_forward_pre_hook(lambda module, arguments: (select(arguments[0]), *arguments[1:]))
    try:
        yield
    finally:
        handle.remove()
