"""Which rows of a batch may share a forward pass: those whose results are the same as when each runs alone.

Rows are padded on the right without a mask, which no causal model can see. The exception is rotary embeddings that
choose their frequencies by the largest position in the batch: a short row in a batch with a long one is rotated
differently. Architectures that are not in the table (models/families.py) run one row at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from em_evals.models import families


def groups(config: Any, lengths: Sequence[int]) -> list[list[int]]:
    """Split a batch's rows into groups that may share a forward pass.

    Args:
        config: of the model, or of its text part.
        lengths: tokens of each row.

    Returns:
        Indices of rows, in ascending order within each group; one group where all rows may run together.
    """
    if families.family(config) is None:
        return [[row] for row in range(len(lengths))]
    text = config.get_text_config()
    border, limit = families.rope_border(text), text.max_position_embeddings if remembers(text) else None
    found: dict[tuple[bool, int], list[int]] = {}
    for row, length in enumerate(lengths):
        beyond = border is not None and length > border
        # Dynamic NTK has different frequencies for each length beyond the model's maximum.
        stretched = max(length - limit, 0) if limit is not None else 0
        found.setdefault((beyond, stretched), []).append(row)
    return list(found.values())


def remembers(config: Any) -> bool:
    """Check whether a pass depends on the lengths of earlier ones (`forget`)."""
    ropes = getattr(config.get_text_config(), "rope_parameters", None) or {}
    inner = [one for one in ropes.values() if isinstance(one, dict)] or [ropes]
    return any("dynamic" in str(rope.get("rope_type")) for rope in inner)


def forget(model: Any) -> None:
    """Reset dynamic NTK to the frequencies of a short row: it keeps those of the longest row that it has seen."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for layer, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
            if "dynamic" not in str(kind):
                continue
            prefix = f"{layer}_" if layer else ""
            original = getattr(module, f"{prefix}original_inv_freq")
            current = getattr(module, f"{prefix}inv_freq")
            module.register_buffer(f"{prefix}inv_freq", original.to(current.device), persistent=False)
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def split(
    config: Any, ids: torch.Tensor, lengths: torch.Tensor, labelled: torch.Tensor
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield the batch's groups: row indices, and ids, lengths and labels without padding that no row needs."""
    for rows in groups(config, lengths.tolist()):
        if len(rows) == len(lengths):
            yield rows, ids, lengths, labelled
            continue
        taken = torch.tensor(rows, device=ids.device)
        longest = int(lengths[taken].max())
        yield rows, ids[taken, :longest], lengths[taken], labelled[taken, : longest - 1]
